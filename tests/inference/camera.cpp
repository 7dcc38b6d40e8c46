// A webcam without hardware, preloaded: /dev/video0 is there, and gives small frames as fast as they are
// asked for.
//
// It answers what a program asks of a Video4Linux2 device that it maps into memory (videodev2.h). A frame is
// 32x16 pixels of YUYV, or of BGR if CAMERA_BGR is set, and all its light is 16 + 8 times its number. After
// CAMERA_FRAMES, if set, it is gone, as one whose cable was pulled. Anything else is "Inappropriate ioctl",
// as of a file.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

const char kDevice[] = "/dev/video0";
constexpr unsigned kWidth = 32, kHeight = 16, kMostBytes = kWidth * kHeight * 3, kPage = 4096, kBuffers = 8;

int camera = -1;  // the descriptor of its memory
unsigned frames = 0, first = 0, queued = 0, waiting[kBuffers];

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool is_bgr() { return getenv("CAMERA_BGR") != nullptr; }

unsigned bytes() { return kWidth * kHeight * (is_bgr() ? 3 : 2); }

bool is_camera(const char* path) { return path && strcmp(path, kDevice) == 0; }

int open_camera() {
  camera = memfd_create("camera", 0);
  if (camera >= 0 && ftruncate(camera, kPage * kBuffers) != 0) return -1;
  return camera;
}

void describe(v4l2_format* format) {
  format->fmt.pix.width = kWidth;
  format->fmt.pix.height = kHeight;
  format->fmt.pix.pixelformat = is_bgr() ? V4L2_PIX_FMT_BGR24 : V4L2_PIX_FMT_YUYV;
  format->fmt.pix.field = V4L2_FIELD_NONE;
  format->fmt.pix.bytesperline = bytes() / kHeight;
  format->fmt.pix.sizeimage = bytes();
}

void fill(v4l2_buffer* buffer) {
  buffer->index = waiting[first++ % kBuffers];
  buffer->bytesused = bytes();
  buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
  buffer->timestamp.tv_sec = 1000 + frames / 10;  // ten frames a second
  buffer->timestamp.tv_usec = frames % 10 * 100000;
  unsigned char pixels[kMostBytes];
  memset(pixels, 16 + 8 * (frames % 24), bytes());
  for (unsigned i = 1; !is_bgr() && i < bytes(); i += 2) pixels[i] = 128;  // no color
  ++frames;
  if (pwrite(camera, pixels, bytes(), buffer->index * kPage) != bytes()) perror("camera");
}

int answer(unsigned long request, void* argument) {
  switch (request) {
    case VIDIOC_QUERYCAP: {
      auto* found = static_cast<v4l2_capability*>(argument);
      memset(found, 0, sizeof *found);
      found->capabilities = found->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
      return 0;
    }
    case VIDIOC_G_INPUT:
      *static_cast<int*>(argument) = 0;
      return 0;
    case VIDIOC_S_INPUT:
      return 0;
    case VIDIOC_ENUMINPUT: {
      auto* input = static_cast<v4l2_input*>(argument);
      if (input->index != 0) break;
      memset(input, 0, sizeof *input);
      input->type = V4L2_INPUT_TYPE_CAMERA;
      return 0;
    }
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
    case VIDIOC_TRY_FMT:
      describe(static_cast<v4l2_format*>(argument));
      return 0;
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM: {
      auto* capture = &static_cast<v4l2_streamparm*>(argument)->parm.capture;
      capture->timeperframe.numerator = 1;
      capture->timeperframe.denominator = 10;
      return 0;
    }
    case VIDIOC_REQBUFS:
      static_cast<v4l2_requestbuffers*>(argument)->count = kBuffers;
      return 0;
    case VIDIOC_QUERYBUF: {
      auto* buffer = static_cast<v4l2_buffer*>(argument);
      buffer->length = kPage;
      buffer->m.offset = buffer->index * kPage;
      return 0;
    }
    case VIDIOC_QBUF:
      waiting[queued++ % kBuffers] = static_cast<v4l2_buffer*>(argument)->index;
      return 0;
    case VIDIOC_DQBUF:
      if (const char* last = getenv("CAMERA_FRAMES"); last && frames >= strtoul(last, nullptr, 10)) {
        errno = ENODEV;
        return -1;
      }
      if (first == queued) break;
      usleep(10000);
      fill(static_cast<v4l2_buffer*>(argument));
      return 0;
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
      return 0;
  }
  errno = ENOTTY;
  return -1;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  if (is_camera(path)) return open_camera();
  va_list rest;
  va_start(rest, flags);
  const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
  va_end(rest);
  return next<int (*)(const char*, int, ...)>("open")(path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  if (is_camera(path)) return open_camera();
  va_list rest;
  va_start(rest, flags);
  const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
  va_end(rest);
  return next<int (*)(const char*, int, ...)>("open64")(path, flags, mode);
}

int stat(const char* path, struct stat* found) noexcept {
  return next<int (*)(const char*, struct stat*)>("stat")(is_camera(path) ? "/dev/null" : path, found);
}

int stat64(const char* path, struct stat64* found) noexcept {
  return next<int (*)(const char*, struct stat64*)>("stat64")(is_camera(path) ? "/dev/null" : path, found);
}

int ioctl(int descriptor, unsigned long request, ...) noexcept {
  va_list rest;
  va_start(rest, request);
  void* argument = va_arg(rest, void*);
  va_end(rest);
  if (descriptor == camera && camera >= 0) return answer(static_cast<unsigned>(request), argument);
  return next<int (*)(int, unsigned long, ...)>("ioctl")(descriptor, request, argument);
}
}
