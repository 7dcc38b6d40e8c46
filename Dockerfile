# frcnn for CPUs: docker build -t frcnn . && docker run --rm -v "$PWD":/data frcnn detect images --model best.pth
# Linted, but never built: there was no engine where it was written.
FROM python:3.13.7-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++=4:12.2.0-3 \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/constraints.txt constraints.txt
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_CONSTRAINT=/src/constraints.txt PIP_NO_CACHE_DIR=1
RUN pip install torch==2.13.0 numpy==2.4.6 setuptools==84.2.1 wheel==0.48.0 ninja==1.13.2
COPY . .
RUN FORCE_CUDA=0 pip wheel --no-deps --no-build-isolation -w /wheels .

FROM python:3.13.7-slim-bookworm
COPY requirements/constraints.txt /wheels/constraints.txt
COPY --from=build /wheels /wheels
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_CONSTRAINT=/wheels/constraints.txt PIP_NO_CACHE_DIR=1
RUN pip install torch==2.13.0 /wheels/*.whl && useradd --create-home --uid 10001 frcnn
USER 10001
WORKDIR /data
ENTRYPOINT ["frcnn"]
CMD ["--help"]
