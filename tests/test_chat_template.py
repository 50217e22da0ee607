"""Prompts: the published format, the built-in template's repairs, and no injection."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4rs.chat_template import IMAGE_TOKEN, ChatTemplate, image_parts, normalize_messages
from llama4rs.errors import ChatTemplateError
from llama4rs.tokenizer import Tokenizer
from tokenizer.small import SPECIALS, saved, small_backend
from tokenizer.texts import LANGUAGES

RELAXED = settings(deadline=None, max_examples=150)
BOS = "<|begin_of_text|>"
PROMPT = "<|header_start|>assistant<|header_end|>\n\n"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Météo d'une ville <b>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
WEATHER_TEXT = """{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Météo d'une ville <b>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string"
                }
            }
        }
    }
}

"""
FORMAT = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)
IN_USER = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n" + FORMAT + WEATHER_TEXT
)
IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for "
    "a function call." + FORMAT + WEATHER_TEXT
)


def block(role: str, content: str) -> str:
    return f"<|header_start|>{role}<|header_end|>\n\n{content}<|eot|>"


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def assistant(content: Any, **calls: dict[str, Any]) -> dict[str, Any]:
    """An assistant message, with a call for each keyword."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls.items()
        ]
    return message


def tool(content: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": "1"}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}


@pytest.fixture(scope="session")
def builtin() -> ChatTemplate:
    return ChatTemplate()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("chat") / "tokenizer.json"
    return Tokenizer.from_file(saved(small_backend(), path))


# ------------------------------------------------------------------------------------- format


class TestPublishedFormat:
    """Conversations that the published template handles well come out the same."""

    def render(self, *messages: dict[str, Any], **options: Any) -> str:
        return ChatTemplate().render(list(messages), **options)

    def test_turns(self) -> None:
        assert self.render(user("Hi")) == BOS + block("user", "Hi") + PROMPT
        assert self.render(
            system("  Be brief.\n"), user(" a \n"), assistant(" b \n"), user("c")
        ) == (
            BOS
            + block("system", "Be brief.")
            + block("user", " a \n")
            + block("assistant", " b \n")
            + block("user", "c")
            + PROMPT
        )

    def test_no_generation_prompt(self) -> None:
        assert self.render(user("Hi"), add_generation_prompt=False) == BOS + block("user", "Hi")

    def test_parts_have_no_separators(self) -> None:
        content = [text("a "), IMAGE, {"type": "image"}, text("b"), text("\nc ")]
        assert self.render(user(content)) == (
            BOS + block("user", "a <|image|><|image|>b\nc ") + PROMPT
        )

    def test_tools_in_first_user_message(self) -> None:
        assert self.render(user(" Paris? \n"), user(" b "), tools=[WEATHER]) == (
            BOS + block("user", IN_USER + "Paris?") + block("user", " b ") + PROMPT
        )
        assert self.render(system(" S "), user("Paris?"), tools=[WEATHER, WEATHER]) == (
            BOS
            + block("system", "Environment: ipython\nS")
            + block("user", IN_USER + WEATHER_TEXT + "Paris?")
            + PROMPT
        )

    def test_tools_in_system_message(self) -> None:
        rendered = self.render(
            system("S"), user(" Paris? "), tools=[WEATHER], tools_in_user_message=False
        )
        assert rendered == (
            BOS
            + block("system", f"Environment: ipython\n{IN_SYSTEM}S")
            + block("user", " Paris? ")
            + PROMPT
        )

    def test_tool_call_and_result(self) -> None:
        calls = assistant("", get_weather={"city": "Orléans", "b": [1, None]}, now={})
        assert self.render(user(), calls, tool({"t": "20 °C"}), tool([1, "x"])) == (
            BOS
            + block("user", "Hi")
            + block(
                "assistant",
                '<|python_start|><|python_end|>{"name": "get_weather", "parameters": '
                '{"city": "Orléans", "b": [1, null]}}{"name": "now", "parameters": {}}',
            )
            + block("ipython", '{"t": "20 °C"}')
            + block("ipython", '[1, "x"]')
            + PROMPT
        )

    def test_equal_to_the_published_template(self, builtin: ChatTemplate) -> None:
        module = pytest.importorskip(
            "transformers.models.llama4.processing_llama4",
            reason="the published template comes with transformers",
        )
        published = ChatTemplate(module.chat_template)
        words = st.text("ab \n{}<|'\"é日", max_size=6)
        contents = words | st.lists(st.builds(text, words) | st.just(IMAGE), min_size=1, max_size=3)
        values = st.dictionaries(words, words | st.none() | st.lists(st.integers()), max_size=2)
        later = st.one_of(
            st.builds(user, contents),
            st.builds(assistant, words),
            st.builds(lambda v: assistant("", f=v), values),
            st.builds(tool, words | values),
        )

        @RELAXED
        @given(words | st.none(), words, st.lists(later, max_size=4), st.data())
        def check(first: str | None, second: str, rest: list[Any], data: st.DataObject) -> None:
            messages = [] if first is None else [system(first)]
            messages += [user(second), *rest]
            tools = data.draw(st.sampled_from([None, [WEATHER]]))
            options = {"add_generation_prompt": data.draw(st.booleans())}
            if first is not None:
                options["tools_in_user_message"] = data.draw(st.booleans())
            assert builtin.render(
                messages, tools, quote_tool_results=True, **options
            ) == published.render(messages, tools, **options)

        check()


class TestRepairs:
    """One test for each row of the table in the module's documentation."""

    def test_tools_with_content_list(self, builtin: ChatTemplate) -> None:
        content = [text("  See "), IMAGE, text(": Paris? ")]
        assert builtin.render([user(content)], [WEATHER]) == (
            BOS + block("user", IN_USER + "See <|image|>: Paris?") + PROMPT
        )
        assert builtin.render([user([text(" a"), text("b ")])], [WEATHER]) == (
            BOS + block("user", IN_USER + "ab") + PROMPT
        )

    def test_tools_go_to_the_first_user_message(self, builtin: ChatTemplate) -> None:
        assert builtin.render([assistant("Welcome "), user("Paris?")], [WEATHER]) == (
            BOS + block("assistant", "Welcome ") + block("user", IN_USER + "Paris?") + PROMPT
        )

    def test_tools_without_user_message(self, builtin: ChatTemplate) -> None:
        with pytest.raises(ChatTemplateError, match="add one or pass tools_in_user_message=False"):
            builtin.render([system("S")], [WEATHER])

    def test_tools_in_system_message_that_is_not_there(self, builtin: ChatTemplate) -> None:
        assert builtin.render([user()], [WEATHER], tools_in_user_message=False) == (
            BOS
            + block("system", f"Environment: ipython\n{IN_SYSTEM}")
            + block("user", "Hi")
            + PROMPT
        )

    def test_empty_tools(self, builtin: ChatTemplate) -> None:
        for in_user in (True, False):
            rendered = builtin.render([system("S"), user()], [], tools_in_user_message=in_user)
            assert rendered == builtin.render([system("S"), user()])
        assert ChatTemplate("{{ tools is none }}").render([user()], []) == "True"

    def test_system_message_of_parts(self, builtin: ChatTemplate) -> None:
        assert builtin.render([system([text(" a"), text(" b ")]), user()]) == (
            BOS + block("system", "a b") + block("user", "Hi") + PROMPT
        )

    def test_empty_tool_calls(self, builtin: ChatTemplate) -> None:
        for calls in ([], None):
            message = {"role": "assistant", "content": "Yes", "tool_calls": calls}
            assert builtin.render([user(), message]) == builtin.render([user(), assistant("Yes")])

    def test_content_beside_tool_calls(self, builtin: ChatTemplate) -> None:
        body = '<|python_start|><|python_end|>{"name": "f", "parameters": {}}'
        for content in ("I look. ", [text("I "), text("look. ")]):
            assert builtin.render([user(), assistant(content, f={})]) == (
                BOS + block("user", "Hi") + block("assistant", "I look. " + body) + PROMPT
            )
        for content in ("", None):
            assert block("assistant", body) in builtin.render([user(), assistant(content, f={})])
        without = assistant(None, f={})
        del without["content"]
        assert block("assistant", body) in builtin.render([user(), without])

    @pytest.mark.parametrize("arguments", ['{"a": "é"}', {"a": "é"}])
    def test_arguments_as_text(self, builtin: ChatTemplate, arguments: Any) -> None:
        assert '{"name": "f", "parameters": {"a": "é"}}<|eot|>' in builtin.render(
            [user(), assistant("", f=arguments)]
        )

    def test_function_name_with_quotes(self, builtin: ChatTemplate) -> None:
        rendered = builtin.render([user(), assistant("", **{'f"': {}})])
        assert '{"name": "f\\"", "parameters": {}}' in rendered

    def test_tool_results(self, builtin: ChatTemplate) -> None:
        def result(content: Any, **options: Any) -> str:
            rendered = builtin.render([user(), tool(content)], None, False, **options)
            return rendered.removeprefix(BOS + block("user", "Hi"))

        assert result('{"t": 20}\n') == block("ipython", '{"t": 20}\n')
        assert result("é", quote_tool_results=True) == block("ipython", '"é"')
        assert result([text('{"t":'), text(" 20}")]) == block("ipython", '{"t": 20}')
        assert result([text("see "), IMAGE]) == block("ipython", "see <|image|>")
        assert result([text("a"), 3]) == block("ipython", '[{"type": "text", "text": "a"}, 3]')
        for value in (20, 2.5, True, None, [], {}):
            assert result(value) == block("ipython", json.dumps(value))


# ----------------------------------------------------------------------------------- encoding


def joint_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return tokenizer.encode(prompt, parse_special=True)


class TestEncode:
    def test_equals_the_joint_text(self, builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
        messages = [system("S"), *map(user, LANGUAGES.values()), assistant("é", f={"a": "日|"})]
        messages.append(tool("a | b || c <b>"))
        ids = builtin.encode(tokenizer, messages, [WEATHER])
        assert ids == joint_ids(tokenizer, builtin.render(messages, [WEATHER]))
        assert ids[0] == tokenizer.bos_id
        assert ids.count(ids[0]) == 1
        assert tokenizer.decode(ids, skip_special=False) == builtin.render(messages, [WEATHER])

    def test_benign_text_is_not_touched(self, builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
        @RELAXED
        @given(st.text(max_size=20) | st.text("|<> \na\U0001d800\U0001d801", max_size=12))
        def check(content: str) -> None:
            content = content.encode("utf-8", "replace").decode()
            messages = [system(content), user(content), tool({content: content})]
            rendered = builtin.render(messages)
            if not any(name in content for name in SPECIALS):
                assert builtin.encode(tokenizer, messages) == joint_ids(tokenizer, rendered)
            assert rendered.count(f"{content}<|eot|>") >= 1

        check()

    def test_images(self, builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
        messages = [user([text("a"), IMAGE, text("<|image|>"), {"type": "image", "image": 7}])]
        ids = builtin.encode(tokenizer, messages)
        assert ids.count(tokenizer.special_id("image")) == 2
        assert "a<|image|>" in tokenizer.decode(ids)
        assert image_parts(messages) == [IMAGE, {"type": "image", "image": 7}]
        assert image_parts([user(), tool([1, {"type": "image"}]), tool([IMAGE])]) == [IMAGE]

    @pytest.mark.parametrize(
        ("source", "num_bos"),
        [
            ("{{ bos_token }}x", 1),
            ("x", 1),
            ("{{ bos_token }}{{ bos_token }}x", 1),
            ("<|begin_of_text|>{{ bos_token }}", 1),
        ],
    )
    def test_one_bos(self, tokenizer: Tokenizer, source: str, num_bos: int) -> None:
        ids = ChatTemplate(source).encode(tokenizer, [user()])
        assert ids[0] == tokenizer.bos_id
        assert ids.count(ids[0]) == num_bos

    def test_tokenizer_without_special_tokens(self, tmp_path: Path, builtin: ChatTemplate) -> None:
        spec = json.loads(small_backend().to_str())
        spec["added_tokens"] = []
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
        plain = Tokenizer.from_file(tmp_path / "tokenizer.json")
        ids = builtin.encode(plain, [user("a|b")])
        assert ids == plain.encode(builtin.render([user("a|b")]).removeprefix(BOS))

    def test_from_tokenizer(self, tmp_path: Path) -> None:
        saved(small_backend(), tmp_path / "tokenizer.json")
        assert ChatTemplate.from_tokenizer(Tokenizer.from_dir(tmp_path)).is_builtin
        named = [
            {"name": "default", "template": "{{ bos_token }}{{ eos_token }}"},
            {"name": "tool_use", "template": "{{ tools | length }}"},
        ]
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<|step|>", "chat_template": named})
        )
        template = ChatTemplate.from_tokenizer(Tokenizer.from_dir(tmp_path))
        assert not template.is_builtin
        assert template.render([user()]) == BOS + "<|step|>"
        assert template.render([user()], [WEATHER]) == "1"


class TestInjection:
    HOSTILE = st.lists(
        st.sampled_from([*SPECIALS, "<|", "|>", "<", "|", ">", "eot", "\n\n", "user", " "])
        | st.text(max_size=2),
        max_size=6,
    ).map("".join)

    def specials_in(self, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
        return [i for i in ids if tokenizer.is_special(i)]

    def test_builtin(self, builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
        """Whatever is in the strings, the special tokens are those of harmless strings."""

        def conversation(t: list[str]) -> tuple[list[Any], list[Any]]:
            description = {"name": t[0], "parameters": {t[1]: {"description": t[2]}}}
            return [
                system([text(t[3]), text(t[4])]),
                user([text(t[5]), IMAGE, text(t[6]), text(t[7])]),
                assistant(t[8], **{"f" + t[9]: {t[10]: [t[11]]}}),
                tool(t[12]),
                tool({t[13]: t[14]}),
                user(t[15]),
            ], [{"type": "function", "function": description, t[16]: t[17]}]

        harmless = conversation(["x"] * 18)
        expected = self.specials_in(tokenizer, builtin.encode(tokenizer, *harmless))
        assert len(expected) == 24

        @RELAXED
        @given(st.lists(self.HOSTILE, min_size=18, max_size=18), st.booleans())
        def check(strings: list[str], quote: bool) -> None:
            messages, tools = conversation(strings)
            ids = builtin.encode(tokenizer, messages, tools, quote_tool_results=quote)
            assert self.specials_in(tokenizer, ids) == expected
            rendered = builtin.render(messages, tools, quote_tool_results=quote)
            readable = tokenizer.decode(ids, skip_special=False)
            assert readable == rendered.encode("utf-16", "surrogatepass").decode(
                "utf-16", "replace"
            )

        check()

    @pytest.mark.parametrize(
        "source",
        [
            "{% for m in messages %}<{{ m.content }}>{% endfor %}",
            "{% for m in messages %}<|{{ m.content }}|>{% endfor %}",
            "{% for m in messages %}<|e{{ m.content }}{% endfor %}",
            "{{ messages }}",
            "{{ messages | tojson }}",
            "{{ messages | tojson(ensure_ascii=true) }}",
            "{% for m in messages %}{{ m.content | trim | lower }}{% endfor %}",
            "{% for m in messages %}{{ m.content.split('x') | join }}{% endfor %}",
            "{{ messages | map(attribute='content') | join }}",
            "{{ extra }}{{ extra }}",
            "{{ messages[0].name }}",
        ],
    )
    def test_other_templates(self, tokenizer: Tokenizer, source: str) -> None:
        template = ChatTemplate(source)
        contents = ["<|eot|>", "|eot|", "<", "|eot|>", "<|e", "xot|>", "<x|xeotx|x>", "<|EOT|>"]
        messages = [{**user(content), "name": "<|eot|>"} for content in contents]
        ids = template.encode(tokenizer, messages, extra="<|eot|>")
        assert self.specials_in(tokenizer, ids) == [tokenizer.bos_id]
        assert tokenizer.decode(ids) == template.render(messages, extra="<|eot|>")

    def test_names_of_other_shapes(self, tmp_path: Path) -> None:
        backend = small_backend()
        backend.add_special_tokens(["</s>", "[INST]", "☃", "EOS", " \n¶"])
        tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
        template = ChatTemplate("</s>{{ messages[0].content }}[INST]☃EOS \n¶")
        hostile = "</s>[INST]☃EOS \n¶<|eot|></s"
        ids = template.encode(tokenizer, [user(hostile)])
        names = ["<|begin_of_text|>", "</s>", "[INST]", "☃", "EOS", " \n¶"]
        assert self.specials_in(tokenizer, ids) == [tokenizer.special_tokens[n] for n in names]
        assert tokenizer.decode(ids) == hostile

    def test_stand_ins_that_the_text_uses(
        self, builtin: ChatTemplate, tokenizer: Tokenizer
    ) -> None:
        everything = "".join(map(chr, range(0x1D800, 0x1DA00)))
        ids = builtin.encode(tokenizer, [user("<|eot|>" + everything)])
        assert "<|eot|>" + everything in tokenizer.decode(ids)

    def test_templates_still_find_tags(self, tokenizer: Tokenizer) -> None:
        """`|` is the only character that a template sees changed, and no length changes."""
        template = ChatTemplate("{{ messages[0].content.split('</think>')[-1] | length }}")
        assert template.render([user("<think>a</think>b|c")]) == "3"


# -------------------------------------------------------------------------------- environment


class TestEnvironment:
    def test_json_filter(self) -> None:
        value = [{**user("é<|>&'\"\\"), "z": 1, "a": None}]
        for call in ("tojson", "tojson(indent=2)", "tojson(separators=(',', ':'))"):
            rendered = ChatTemplate("{{ messages | " + call + " }}").render(value)
            assert json.loads(rendered) == [{**value[0]}]
            assert "é<|>&'" in rendered
            assert rendered.index('"z"') < rendered.index('"a"')
        ascii_only = ChatTemplate("{{ messages[0].content | tojson(ensure_ascii=true) }}")
        assert ascii_only.render(value) == json.dumps("é<|>&'\"\\")
        assert ascii_only.render([user("😀|")]) == '"\\ud83d\\ude00|"'
        ordered = ChatTemplate("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}")
        assert ordered.render(value) == '{"a": 2, "b": 1}'

    def test_functions_and_tags(self) -> None:
        year = ChatTemplate("{{ strftime_now('%Y') }}").render([user()])
        assert year.isdigit()
        assert len(year) == 4
        source = "{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}"
        assert ChatTemplate(source).render([user()]) == "1"
        source = "a{% generation %}{{ messages[0].content }}{% endgeneration %}b"
        assert ChatTemplate(source).render([user("x")]) == "axb"
        source = "{% if true %}\n  {% set x = 1 %}\n{{ x }}\n{% endif %}\n"
        assert ChatTemplate(source).render([user()]) == "1\n"

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("{{ raise_exception('only text, please') }}", "refuses the messages: only text, plea"),
            ("{{ ''.__class__.__mro__ }}", "refuses the messages: .*unsafe"),
            ("{{ messages.append(1) }}", "refuses the messages: .*unsafe"),
            ("{{ range(10000000) | list }}", "failed: OverflowError"),
            ("{{ missing.attribute }}", "refuses the messages: 'missing' is undefined"),
            ("{{ missing | tojson }}", "failed: TypeError"),
            ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ],
    )
    def test_failures(self, source: str, message: str) -> None:
        with pytest.raises(ChatTemplateError, match=message):
            ChatTemplate(source).render([user()])

    def test_syntax_error(self) -> None:
        with pytest.raises(ChatTemplateError, match=r"syntax error in line 2: .*'endfor'"):
            ChatTemplate("a\n{% for x in y %}")
        with pytest.raises(ChatTemplateError, match="syntax error in line 1"):
            ChatTemplate("ok", tool_source="{{")

    def test_from_file(self, tmp_path: Path) -> None:
        path = tmp_path / "own.jinja"
        path.write_text("{{ messages[0].content }} é", "utf-8")
        assert ChatTemplate.from_file(path).render([user()]) == "Hi é"
        with pytest.raises(
            ChatTemplateError,
            match=r"cannot read the chat template .*nowhere.*\n.*ChatTemplate\(text\)",
        ):
            ChatTemplate.from_file(tmp_path / "nowhere")

    def test_lost_images_are_an_error(self, tokenizer: Tokenizer) -> None:
        template = ChatTemplate("{{ messages[0].content | string }}")
        with pytest.raises(ChatTemplateError, match="have 1 images and the chat template wrote 0"):
            template.encode(tokenizer, [user([IMAGE])])
        with pytest.raises(ChatTemplateError, match="have 0 images and the chat template wrote 1"):
            ChatTemplate(IMAGE_TOKEN).render([user()])

    def test_template_variables(self, builtin: ChatTemplate) -> None:
        assert ChatTemplate("{{ a }}{{ b[0] }}").render([user()], a="x|", b=["y"]) == "x|y"
        with pytest.raises(ChatTemplateError, match="'bos_token' cannot be passed"):
            builtin.render([user()], bos_token="x")

    def test_threads(self, builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
        expected = builtin.encode(tokenizer, [user("<|eot|>")], [WEATHER])
        results: list[list[int]] = []

        def work() -> None:
            for _ in range(20):
                results.append(builtin.encode(tokenizer, [user("<|eot|>")], [WEATHER]))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 80


# --------------------------------------------------------------------------------- validation


class TestMessages:
    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ("Hi", "messages must be a list of .* not a str"),
            (user(), "messages must be a list of .* not a dict"),
            (None, "messages must be a list of .* not None"),
            ([], "messages is empty; give at least one message"),
            ([user(), "Hi"], r"messages\[1\] must be a dict with role and content, not a str"),
            ([{"content": "Hi"}], r"messages\[0\] has no role; use one of system, user, assist"),
            ([{"role": "robot", "content": "Hi"}], r"messages\[0\] has the unknown role 'robot'"),
            ([{"role": ["user"], "content": "Hi"}], r"messages\[0\] has the unknown role \['user'"),
            ([{"role": "user"}], r"messages\[0\] \(user\) has no content; give a string$"),
            ([assistant(None)], r"messages\[0\] \(assistant\) has no content; .* or tool_calls$"),
            ([{"role": "tool"}], r"messages\[0\] has no content; give the tool's result"),
            ([user(3)], r"messages\[0\].content must be a string or a list of parts, not a int"),
            ([user(text("a"))], r"messages\[0\].content must be a string or a list .* not a dict"),
            ([user(["a"])], r"messages\[0\].content\[0\] must be a dict with a type.* not a str"),
            ([user([{"text": "a"}])], r"messages\[0\].content\[0\] must be a dict with a type"),
            ([user([{"type": "text"}])], r"content\[0\]: a text part needs a string .* not None"),
            ([user([text("a"), text(3)])], r"content\[1\]: a text part needs .* not a int"),  # type: ignore[arg-type]
            ([user([{"type": "audio"}])], r"unknown type 'audio'; use text, image or image_url"),
            ([system([IMAGE])], r"messages\[0\].content\[0\]: a system message cannot hold an im"),
            ([{**user(), "tool_calls": [1]}], r"messages\[0\]: only an assistant message can"),
            ([{**assistant(""), "tool_calls": "f"}], r"tool_calls must be a list, not a str"),
            (
                [{**assistant(""), "tool_calls": ["f"]}],
                r"tool_calls\[0\] must be a dict, not a str",
            ),
            ([{**assistant(""), "tool_calls": [{}]}], r"tool_calls\[0\] needs {'function': "),
            ([{**assistant(""), "tool_calls": [{"type": "x"}]}], "unknown type 'x'; use function"),
            ([assistant("", f="{")], r"tool_calls\[0\]: arguments are not valid JSON"),  # type: ignore[arg-type]
            ([assistant("", f="[1]")], r"arguments must be a JSON object, not a list"),  # type: ignore[arg-type]
        ],
    )
    def test_errors(self, builtin: ChatTemplate, messages: Any, message: str) -> None:
        with pytest.raises(ChatTemplateError, match=message):
            builtin.render(messages)

    @pytest.mark.parametrize(
        ("tools", "message"),
        [
            (WEATHER, "tools must be a list of JSON descriptions, not a dict"),
            ([WEATHER, len], r"tools\[1\] must be a dict that describes a function, not a builtin"),
        ],
    )
    def test_tool_errors(self, builtin: ChatTemplate, tools: Any, message: str) -> None:
        with pytest.raises(ChatTemplateError, match=message):
            builtin.render([user()], tools)

    def test_deep_nesting(self, builtin: ChatTemplate) -> None:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(ChatTemplateError, match="nested too deeply"):
            builtin.render([user(), tool({"a": deep})])
        with pytest.raises(ChatTemplateError, match="arguments are not valid JSON"):
            builtin.render([user(), assistant("", f='{"a": ' + "[" * 100_000)])  # type: ignore[arg-type]

    def test_normal_form(self) -> None:
        given_messages = (
            system([]),
            {**user([text("a"), IMAGE]), "name": "Ann"},
            {
                "role": "assistant",
                "tool_calls": (
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": " "}},
                    {"name": "g", "parameters": {"a": 1}},
                ),
            },
            {"role": "ipython", "content": None},
        )
        before = json.dumps(given_messages)
        assert normalize_messages(given_messages) == [
            system(""),
            {**user([text("a"), {"type": "image"}]), "name": "Ann"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}},
                    {"type": "function", "function": {"name": "g", "arguments": {"a": 1}}},
                ],
            },
            {"role": "ipython", "content": None},
        ]
        assert json.dumps(given_messages) == before
