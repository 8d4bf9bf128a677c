#!/usr/bin/env bash
# Runs a real Triton to measure beside: `triton.sh HTTP_PORT GRPC_PORT METRICS_PORT`.
#
# The server is the one that PyPI's `nvidia-pytriton` 0.7.0 bundles (Triton 2.51 with the Python backend and the local
# response cache); it is installed below `target/` once. Two models: `identity` copies 16 floats in Python,
# `identity_cached` is the same with a response cache, so that after its first request only Triton's front end and core
# work. To run it by hand, give three free ports and look at its log.
set -euo pipefail
http_port=$1 grpc_port=$2 metrics_port=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
home=$root/target/triton
if [ ! -e "$home/installed" ]; then
    rm -rf "$home"
    python3 -m venv "$home/venv"
    "$home/venv/bin/pip" install --quiet nvidia-pytriton==0.7.0
    touch "$home/installed"
fi
packages=$("$home/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
bundled=$packages/pytriton/tritonserver
version=$("$home/venv/bin/python" -c 'import sys; print(f"{sys.version_info.major}.{sys.version_info.minor}")')
# The Python backend runs models by the stub that was built for the interpreter's version.
backends=$home/backends
rm -rf "$backends"
cp -r "$bundled/backends" "$backends"
cp "$bundled/python_backend_stubs/$version/triton_python_backend_stub" "$backends/python/"

repository=$home/repository
for model in identity identity_cached; do
    mkdir -p "$repository/$model/1"
    cat >"$repository/$model/config.pbtxt" <<'PBTXT'
backend: "python"
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_FP32 dims: 16 }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 16 }
instance_group { count: 1 kind: KIND_CPU }
PBTXT
    cat >"$repository/$model/1/model.py" <<'PYTHON'
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(request, "INPUT0") for request in requests]
        return [pb.InferenceResponse([pb.Tensor("OUTPUT0", tensor.as_numpy())]) for tensor in inputs]
PYTHON
done
echo 'response_cache { enable: true }' >>"$repository/identity_cached/config.pbtxt"

export LD_LIBRARY_PATH=$packages/nvidia_pytriton.libs PATH=$home/venv/bin:$PATH PYTHONPATH=$packages
exec "$bundled/bin/tritonserver" \
    --model-repository="$repository" --backend-directory="$backends" --cache-directory="$bundled/caches" \
    --cache-config=local,size=67108864 \
    --http-address=127.0.0.1 --grpc-address=127.0.0.1 \
    --http-port="$http_port" --grpc-port="$grpc_port" --metrics-port="$metrics_port"
