// Detects objects in an image without Python:
//
//   detect MODEL.aoti.pt2 OPERATORS IMAGE.ppm
//
// MODEL is what `frcnn export --format aoti` wrote, OPERATORS the library of our operators (the path that
// `python -c "import frcnn_ops._C as c; print(c.__file__)"` prints), IMAGE a binary PPM (P6) that fits
// the model's size. Prints label, score and box (x1 y1 x2 y2 in pixels) of each detection, best first.

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

// uint8 [H, W, 3], BGR.
at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  file >> kind >> width >> height >> most;
  file.get();
  if (kind != "P6" || most != 255 || width < 1 || height < 1)
    throw std::runtime_error(path + " is not a binary PPM of 8 bits (P6 WIDTH HEIGHT 255)");
  at::Tensor rgb = torch::empty({height, width, 3}, torch::kUInt8);
  file.read(reinterpret_cast<char*>(rgb.data_ptr<uint8_t>()), rgb.numel());
  if (!file) throw std::runtime_error(path + " is cut short");
  return rgb.flip(2);
}

int main(int count, char** arguments) try {
  if (count != 4) throw std::runtime_error("usage: detect MODEL.aoti.pt2 OPERATORS IMAGE.ppm");
  if (!dlopen(arguments[2], RTLD_LAZY | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const int64_t height = std::stoll(model.get_metadata().at("height"));
  const int64_t width = std::stoll(model.get_metadata().at("width"));

  const at::Tensor image = read_ppm(arguments[3]);
  if (image.size(0) > height || image.size(1) > width)
    throw std::runtime_error("the image is " + std::to_string(image.size(0)) + "x" +
                             std::to_string(image.size(1)) + ": resize it to fit " + std::to_string(height) +
                             "x" + std::to_string(width));
  at::Tensor images = torch::zeros({1, height, width, 3}, torch::kUInt8);
  images[0].narrow(0, 0, image.size(0)).narrow(1, 0, image.size(1)).copy_(image);
  const at::Tensor sizes = torch::tensor({{float(image.size(0)), float(image.size(1))}});
  const at::Tensor scales = torch::ones({1, 2});

  const auto found = model.run({images, sizes, scales});  // boxes, scores, labels, counts
  for (int64_t i = 0; i < found[3].item<int64_t>(); ++i) {
    const at::Tensor box = found[0][0][i];
    std::cout << found[2][0][i].item<int64_t>() << ' ' << found[1][0][i].item<float>();
    for (int side = 0; side < 4; ++side) std::cout << ' ' << box[side].item<float>();
    std::cout << '\n';
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "detect: " << error.what() << '\n';
  return 1;
}
