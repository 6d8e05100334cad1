"""rsync's patterns of single paths, judged by rsync itself in test_image_update."""

import pytest

from tasks.model.rsync_pattern import exclude_rule, literal


@pytest.mark.parametrize(
    ("path", "more", "pattern"),
    [
        ("/", "", ""),
        ("/", "/*", "/*"),
        ("/a\\b c", "", "/a\\b c"),
        ("/a\\b c/", "/lost+found", "/a\\b c/lost+found"),
        ("/a\\b?", "", "/a\\\\b\\?"),
        ("/a\\b", "/**", "/a\\\\b/**"),
        (r"/mnt/a*[b]\c?", "/*", r"/mnt/a\*\[b]\\c\?/*"),
    ],
)
def test_path_is_escaped_only_where_rsync_sees_a_pattern(path: str, more: str, pattern: str) -> None:
    assert literal(path, more) == pattern


@pytest.mark.parametrize(
    ("pattern", "rule"), [("*.tmp", "- *.tmp"), ("- /a", "- /a"), ("+ /a", "+ /a"), ("-a", "- -a")]
)
def test_pattern_of_an_exclude_is_the_rule_that_it_means(pattern: str, rule: str) -> None:
    assert exclude_rule(pattern) == rule
