# The kvcal program for CPUs. From the root of the repository:
#   docker build -f apps/docker/cpu.Dockerfile -t kvcal .
#   docker run --rm -v "$PWD:/data" kvcal calibrate --model /data/model --text /data/text.txt --out /data/codebook.h5
FROM debian:bookworm
WORKDIR /opt/kvcal
# First what setup.sh reads, so that a change of the sources does not install everything anew.
COPY setup.sh ./
COPY tests/requirements.txt tests/requirements.txt
RUN ./setup.sh
COPY . .
RUN ./setup.sh --build release && cmake --install build/release --prefix /usr/local && rm -rf build
WORKDIR /data
ENTRYPOINT ["kvcal"]
