"""The options of loading: one declaration each, checked in one place."""

from typing import Any, get_args, get_type_hints

import pytest

from magistral_mlx.api.load_options import DTypeName, LoadFields, LoadOptions
from magistral_mlx.backend import DTYPES
from magistral_mlx.cache.scheme import NAMES, SCHEMES
from magistral_mlx.errors import InvalidOption
from magistral_mlx.option_spec import with_changes


def test_keywords_of_type_checkers_are_the_options():
    assert get_type_hints(LoadFields) == get_type_hints(LoadOptions)


def test_every_dtype_of_the_backend_and_every_cache_scheme_can_be_asked_for():
    assert set(get_args(DTypeName)) == set(DTYPES)
    for name in (*SCHEMES, "8/4", "3/2", "2/8"):
        assert LoadOptions(kv=name).kv == name


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"context": 0}, "context is 0; it must be 1 or more."),
        ({"context": 1.5}, "context is 1.5; it must be a whole number."),
        ({"context": True}, "context is True; it must be a whole number."),
        ({"images": -1}, "images is -1; it must be 0 or more."),
        ({"images": None}, "images is None; it must be a whole number."),
        ({"parallel": 0}, "parallel is 0; it must be 1 or more."),
        *(({"kv": wrong}, f"kv is {wrong!r}; it must be {NAMES}.") for wrong in ("7/4", "6", 6)),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32, float16, bfloat16."),
        ({"memory_limit": 10}, "memory_limit is 10; it must be 64 MB or more, in bytes."),
        ({"cache_dir": ""}, "cache_dir is ''; it must be a name, not empty."),
        ({"draft": 5}, "draft is 5; it must be a name, not empty."),
        (
            {"adapters": ["one"]},
            "adapters is ['one']; it must be a mapping of names to folders or hub names.",
        ),
        ({"adapters": {"a": None}}, "adapters['a'] is None; it must be a name, not empty."),
        ({"cache_size": 10**9}, "cache_size needs a cache_dir, where prompts are kept."),
        (
            {"cache_dir": "x", "cache_size": 1000},
            "cache_size is 1000; it must be 10 MB or more, in bytes.",
        ),
    ],
)
def test_a_value_out_of_range_is_told_with_its_range(wrong: dict[str, Any], told: str):
    with pytest.raises(InvalidOption) as error:
        LoadOptions(**wrong)
    assert str(error.value) == told


def test_an_option_that_is_unknown_is_told_with_the_nearest_one():
    with pytest.raises(InvalidOption, match="no option contxt: did you mean context"):
        with_changes(LoadOptions, None, {"contxt": 5})


def test_changes_override_options_and_leave_the_others():
    options = with_changes(LoadOptions, LoadOptions(context=4096, kv="8/8"), {"context": 2048})
    assert options == LoadOptions(context=2048, kv="8/8")
