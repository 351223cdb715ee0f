"""Tests of the registries of what a job may name."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from oncofed import plugins
from oncofed.errors import SpecError
from oncofed.plugins import MODULES_VARIABLE, Registry, current_pack, is_loaded, registering

PACK = "a" * 64


def test_a_packs_plugins_are_known_under_its_digest_alone() -> None:
    registry = Registry[int]("loss")
    registry.register("own")(1)
    with registering(PACK):
        assert current_pack() == PACK
        registry.register("theirs")(2)
    assert current_pack() == ""
    assert (registry.names(), registry.names(PACK)) == (["own"], ["theirs"])
    assert (registry.find("own"), registry.find("theirs", PACK)) == (1, 2)
    with pytest.raises(SpecError, match=r"^unknown loss 'theirs'; known: own$"):
        registry.find("theirs")
    with pytest.raises(SpecError, match=r"^the pack aaaaaaaaaaaa… has no loss 'own'; it has theirs$"):
        registry.find("own", PACK)


def test_a_pack_cannot_register_forbidden_plugins() -> None:
    registry = Registry[int]("algorithm", packs=False)
    with registering(PACK), pytest.raises(SpecError, match="a pack cannot bring algorithm 'mine'"):
        registry.register("mine")(1)
    assert registry.names(PACK) == []


def test_a_pack_that_failed_to_import_is_not_loaded() -> None:
    with pytest.raises(ZeroDivisionError), registering("b" * 64):
        raise ZeroDivisionError
    assert not is_loaded("b" * 64)
    assert current_pack() == ""


def test_an_installed_package_registers_through_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry[int]("loss", "oncofed.losses")
    monkeypatch.setattr(plugins, "mine", registry, raising=False)
    (tmp_path / "installed_losses.py").write_text("from oncofed import plugins\nplugins.mine.register('theirs')(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("theirs", "installed_losses", "oncofed.losses")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == "oncofed.losses" else [])
    registry.register("own")(1)
    assert registry.find("own") == 1
    assert "installed_losses" not in sys.modules, "nothing is imported for what is known"
    assert registry.find("theirs") == 3


def test_an_installed_plugin_that_fails_to_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "no_such_module", "oncofed.losses")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    with pytest.raises(SpecError, match=r"the package of the loss 'theirs' \(no_such_module\) cannot be imported"):
        Registry[int]("loss", "oncofed.losses").names()
    monkeypatch.setenv(MODULES_VARIABLE, "no_such_module")
    with pytest.raises(SpecError, match=f"{MODULES_VARIABLE} names the module no_such_module"):
        Registry[int]("loss").names()
