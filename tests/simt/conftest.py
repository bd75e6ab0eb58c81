import pytest
from executor import Executor, build, has_compiler, requested_flags


@pytest.fixture(scope="session")
def executor() -> Executor:
    if not has_compiler():
        pytest.skip("g++ is not installed: the CUDA kernels cannot be run on the CPU")
    return Executor(build(requested_flags()))
