# Reverie for one's own machines, without Python on them:
#   docker build -t reverie .
#   docker run --rm -v "$PWD:/work" reverie compare --trace requests.csv
# For NVIDIA GPUs: docker build --build-arg EXTRAS=[cuda] -t reverie-gpu . && docker run --gpus all ...
FROM python:3.12-slim
ARG EXTRAS=""
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt "/src${EXTRAS}" && useradd --create-home reverie
USER reverie
WORKDIR /work
ENTRYPOINT ["reverie"]
CMD ["--help"]
