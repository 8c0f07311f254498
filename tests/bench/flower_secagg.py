"""What one client of Flower's SecAgg+ computes and sends for an update, by the functions that its own client calls.

Run by `tests.bench.secagg` under the interpreter of an environment that has `flwr` and nothing of ours: arguments are
parameters and hospitals; prints JSON. Key agreement, shares and transport are left out, in Flower's favour.
"""

import json
import sys
import time

import numpy as np
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.version import package_version

# The defaults of Flower's workflow.
CLIPPING_RANGE, TARGET_RANGE, MODULUS = 8.0, 1 << 22, 1 << 32

parameters, hospitals = int(sys.argv[1]), int(sys.argv[2])
update = [np.random.default_rng(1).normal(0, 0.3, parameters).astype(np.float32)]
began = time.process_time()
vector = quantize(arithmetic.parameters_multiply(update, 1.0), CLIPPING_RANGE, TARGET_RANGE)
vector = arithmetic.factor_combine(TARGET_RANGE, vector)
shapes = arithmetic.get_parameters_shape(vector)
vector = arithmetic.parameters_addition(vector, pseudo_rand_gen(bytes(32), MODULUS, shapes))
for peer in range(1, hospitals):
    mask = pseudo_rand_gen(bytes([peer]) * 32, MODULUS, shapes)
    vector = (arithmetic.parameters_addition if peer % 2 else arithmetic.parameters_subtraction)(vector, mask)
sent = sum(len(ndarray_to_bytes(one)) for one in arithmetic.parameters_mod(vector, MODULUS))
spent = time.process_time() - began
print(
    json.dumps({"version": package_version, "client_cpu_s": spent, "upload_ratio": sent / (4 * parameters)}),
)
