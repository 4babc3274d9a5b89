"""What the layout of the repository must keep to."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_operator_folder_is_no_package_so_that_it_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    import operator

    assert ROOT not in Path(operator.__file__).parents


def test_user_facing_top_level_is_complete() -> None:
    wanted = [
        "pyproject.toml",
        "operator",
        "crds",
        "charts/splitplane",
        "images",
        "tests",
        "kind-config.yaml",
        "README.md",
    ]
    assert [name for name in wanted if not (ROOT / name).exists()] == []


def test_lock_files_carry_hashes_and_no_host_names() -> None:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    assert [lock.stem for lock in locks] == ["dev", "operator", "peers", "runtime"]
    for lock in locks:
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text
