"""Where weights come from: names, callables, the hub's client while it is asked, files."""

import pathlib

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import logging

from skve._backbones import sources
from skve._backbones.from_timm import BUNDLED, load_image_backbone
from tests.toys import TinyMLP

KINDS = "a name or a path"


@pytest.fixture
def attempts(monkeypatch):
    """Refuse all connections; return the addresses that were tried."""
    tried = []

    def refused(address, timeout):
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refused)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tried


class Name(str):
    __slots__ = ()

    def __str__(self):
        return "another"


@pytest.mark.parametrize("spec", ["model", Name("model"), pathlib.Path("model")])
def test__check_kind__name_or_path__plain_string(spec):
    found = sources.check_kind(spec, KINDS)
    assert found == "model"
    assert type(found) is str


@pytest.mark.parametrize("spec", [None, 3, b"model", ["model"]])
def test__check_kind__anything_else__type_error(spec):
    with pytest.raises(TypeError, match=r"backbone must be a name or a path, got .*\."):
        sources.check_kind(spec, KINDS)


def test__resolve_callable__module_and_name__as_they_are():
    module = TinyMLP()
    assert sources.resolve_callable(module) is module
    assert sources.resolve_callable("model") == "model"


def test__resolve_callable__random_weights__same_each_time_and_global_generators_as_before(global_state):
    before = global_state()
    one, other = (sources.resolve_callable(lambda: torch.nn.Linear(2, 2)) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert global_state() == before


@pytest.mark.parametrize("allowed", [True, False])
def test__quiet_hub__no_connection__offline_meanwhile_and_settings_as_before(allowed, attempts):
    level = logging.get_verbosity()
    with sources.quiet_hub(allowed=allowed):
        assert constants.HF_HUB_OFFLINE
        assert logging.get_verbosity() == logging.ERROR
    assert not constants.HF_HUB_OFFLINE
    assert logging.get_verbosity() == level
    assert attempts == [("huggingface.co", 443)] * allowed


def test__quiet_hub__connection__may_be_asked(monkeypatch):
    class Connection:
        def close(self):
            pass

    monkeypatch.setattr("socket.create_connection", lambda address, timeout: Connection())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with sources.quiet_hub():
        assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("proxy", ["http://proxy.example:3128", "proxy.example:3128"])
def test__quiet_hub__behind_a_proxy__the_proxy_is_tried(proxy, attempts, monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": proxy})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
    with sources.quiet_hub():
        pass
    assert attempts == [("proxy.example", 3128)]


def test__hub__forgotten_prefix__one_attempt_and_the_bundled_name_suggested(attempts, empty_cache):
    with pytest.raises(
        ConnectionError, match=r"got 'efficientnet_lite0'\. Did you mean 'bundled:efficientnet_lite0'\?"
    ):
        load_image_backbone("efficientnet_lite0")
    assert len(attempts) == 1


def test__hub_unreachable__other_name__no_suggestion():
    message = str(sources.hub_unreachable("resnet18", "this or that", OSError("no"), BUNDLED))
    assert message.startswith("backbone must be on this machine if the model hub cannot be reached, got 'resnet18'. ")
    assert "Did you mean" not in message


def test__folder_state__file_changed__another(tmp_path):
    (tmp_path / "a").write_text("a")
    before = sources.folder_state(tmp_path)
    assert sources.folder_state(tmp_path) == before
    (tmp_path / "a").write_text("ab")
    assert sources.folder_state(tmp_path) != before


def test__file_state__no_file__value_error(tmp_path):
    with pytest.raises(ValueError, match=r"backbone must name a file that exists, got .*nothing"):
        sources.file_state(tmp_path / "nothing")
