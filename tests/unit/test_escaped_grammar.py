"""Grammars of a text inside a JSON string: the same texts as before, written as JSON."""

import json

import pytest

from magistral_mlx.engine.constraint import GrammarCompiler, GrammarMask
from magistral_mlx.errors import InvalidOption
from tests.engine_models import tiny_tokenizer, tiny_vocabulary

EOS, CALL, ARGS = 2, 9, 32
# As Codex sends it for its tool apply_patch.
PATCH = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
ADDED = "*** Begin Patch\n*** Add File: a b.py\n+print(\"a\\tb\\n\", 'é😀')\t# x\n+\n*** End Patch"
CHANGED = '*** Begin Patch\n*** Update File: a\n@@ def f():\n-\treturn 1\n+\t"2"\n*** End Patch\n'


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tiny_vocabulary())


def accepts(compiler: GrammarCompiler, grammar: str, text: str) -> bool:
    """Whether a call of a tool with that grammar may hold the text, whole."""
    compiled = compiler.tool_calls(
        {"patch": {}}, call=CALL, args=ARGS, required=True, texts={"patch": grammar}
    )
    mask = GrammarMask(compiled, 1280)
    arguments = json.dumps({"input": text}, ensure_ascii=False)
    ids = [CALL, *tiny_tokenizer().encode("patch"), ARGS, *tiny_tokenizer().encode(arguments)]
    for id in [*ids, EOS]:
        bits = mask.next()
        if not bits[id // 32] >> id % 32 & 1:
            return False
        mask.accept(id)
    return True


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (PATCH, [ADDED, CHANGED], ["", ADDED[1:], ADDED[:-1], "*** Begin Patch\n*** End Patch"]),
        ('start: "a\\"b\\\\c\\n" | "ß😀"', ['a"b\\c\n', "ß😀"], ['a"b', "ß"]),
        (r"start: /[^\n]+/", ['say "x" \\ \t\x01', "a/b"], ["a\nb", ""]),
        (r'start: /[^a\]"]+/', ["b\n\\", "["], ["a", "b]", '"']),
        (r"start: /(\s|\\|\d{2})+/", [" \n\t12\\", "34"], ["a", "1", '"']),
        (r'start: /ab\n\/c/i | "N"i', ["aB\n/C", "n"], ["ab\\N/c", "ab", "m"]),
        (r"start: /.+/s", ["a\nb\r", '"'], [""]),
        ('start: "a".."c" WS "x" // ends\n%import common.WS', ["a \n\tx", "c x"], ["d x", "ax"]),
        ("start: A\n%import common.NEWLINE -> A", ["\n", "\r\n"], ["\r", " "]),
        ("start: ESCAPED_STRING\n%import common (INT, ESCAPED_STRING)", ['"a"'], ["a", "12"]),
        (r"start: /\p{L}+\x41\u0022\x{5c}/", ['xA"\\'], ['1A"\\', "xA"]),
        (r"start: (/(a|\n){2}b?/ | /x{1,2}\t{2,}/)+", ["a\n", "\n\nb", "xx\t\t\taa"], ["a", "x\t"]),
        ('start: WORDS "\\""\nWORDS: /[a-z ]+\\n?/', ['a b"', 'a\n"'], ["a", 'a\n\n"']),
        (r"start: /\P{L}/", ["1", "\n", '"'], ["x"]),
    ],
)
def test_the_texts_of_a_grammar_are_the_texts_of_the_call(
    compiler: GrammarCompiler, grammar: str, right: list[str], wrong: list[str]
):
    assert [text for text in right if not accepts(compiler, grammar, text)] == []
    assert [text for text in wrong if accepts(compiler, grammar, text)] == []


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ('start: %json {"type": "object"}', "%json"),
        ("start: <[9]>", "<"),
        ("start: /a b/x", "flag x"),
        ("start: /[z-a]/", "cannot be rewritten"),
        ("start: /(a/", "cannot be rewritten"),
        ('start: "a" X\nX: "b"\n%ignore X', "%ignore"),
        ('begin: "a"', "start"),
        ("start: /(?=a)b/", "(?=a)b"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused_by_its_tool(
    compiler: GrammarCompiler, grammar: str, why: str
):
    with pytest.raises(InvalidOption, match="'patch' cannot be followed") as refused:
        accepts(compiler, grammar, "")
    assert why in str(refused.value)
