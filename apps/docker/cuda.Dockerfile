# As cpu.Dockerfile, with the CUDA sources compiled. nvcc and the CUDA runtime come from PyPI, of the version that libtorch is
# made for, so that the base is the same Debian as everywhere; NVIDIA's driver comes from the host (nvidia-container-toolkit).
#   docker build -f apps/docker/cuda.Dockerfile -t kvcal-cuda .
#   docker run --rm --gpus all -v "$PWD:/data" kvcal-cuda calibrate --model /data/model ...
FROM debian:bookworm
WORKDIR /opt/kvcal
COPY setup.sh ./
COPY tests/requirements.txt tests/requirements.txt
# --tests: Python's torch, whose dependencies are the CUDA libraries that libtorch's GPU side needs.
RUN ./setup.sh --tests --cuda
COPY . .
RUN ./setup.sh --cuda --build cuda && cmake --install build/cuda --prefix /usr/local && rm -rf build
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /data
ENTRYPOINT ["kvcal"]
