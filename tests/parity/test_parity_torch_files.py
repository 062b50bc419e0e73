"""Files that PyTorch itself wrote."""

import numpy as np
import pytest

from ddpm_jax.interchange.torch_files import read_torch_file
from ddpm_jax.runtime.errors import UserError

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")


def net():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 4)]
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_save(tmp_path, new_format):
    state = net().state_dict()
    base = torch.arange(24.0).reshape(4, 6)
    value = {
        "state_dict": state,
        "parameter": torch.nn.Parameter(base[1:3, ::2]),
        "shared": base.T,
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "bool": base > 3,
        "int": torch.tensor(7),
        "size": base.shape,
        "epoch": 3,
    }
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=new_format)
    read = read_torch_file(tmp_path / "x.pt")
    assert read["epoch"] == 3 and read["size"] == [4, 6] and list(read["state_dict"]) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(read["state_dict"][name], tensor.numpy())
        assert read["state_dict"][name].shape == tuple(tensor.shape)
    for name in ("parameter", "shared", "half", "double", "bool", "int"):
        expected = value[name].detach().numpy()
        np.testing.assert_array_equal(read[name], expected)
        assert read[name].dtype == expected.dtype
    assert read["bfloat16"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(read["bfloat16"].astype(np.float32), value["bfloat16"].float().numpy())


def test_torch_script(tmp_path):
    model = net().eval()
    torch.jit.trace(model, torch.zeros(1, 2, 4, 4)).save(str(tmp_path / "x.pt"))
    read = read_torch_file(tmp_path / "x.pt")
    for name, tensor in model.state_dict().items():
        found = read
        for part in name.split("."):
            found = found[part]
        np.testing.assert_array_equal(found, tensor.numpy())


def test_a_whole_module_is_refused(tmp_path):
    torch.save(net(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"torch.nn.modules.container.Sequential.*state_dict"):
        read_torch_file(tmp_path / "x.pt")
