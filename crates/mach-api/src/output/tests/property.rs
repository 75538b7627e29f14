//! Any text, however it is cut.

use proptest::prelude::*;

use super::*;

/// Pieces of the formats and other text, thrown together.
fn fragments() -> impl Strategy<Value = Vec<String>> {
    let markers = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<function=f>",
        "</function>",
        "<parameter=s>",
        "<parameter=n>",
        "</parameter>",
        "\n",
        " ",
        "{",
        "}",
        "\"",
        "\\",
        ":",
        ",",
        "[",
        "]",
        "\"name\": \"f\"",
        "\"arguments\": {",
        "call:f{",
        "s:",
        "é",
        "<",
        "<|tool_call>",
        "<tool_call|>",
        "<|\"|>",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<|start|>",
        "assistant",
        "commentary to=functions.f",
        "final",
        "analysis",
        "<think>",
        "</think>",
        "<|channel>thought",
        "<channel|>",
        "3",
        "<｜DSML｜tool_calls>",
        "</｜DSML｜tool_calls>",
        "<｜DSML｜invoke name=\"f\">",
        "</｜DSML｜invoke>",
        "<｜DSML｜parameter name=\"s\" string=\"true\">",
        "</｜DSML｜parameter>",
        "null",
        "x",
        "<tool_call>\n<function=f>\n",
        "<tool_call>\n<function=write>\n<parameter=path>\n",
        "<parameter=body>\n",
        "<function=nope>",
        "\n</parameter>\n",
        "\n</parameter>\n</function>\n</tool_call>\n",
        "</function>\n</tool_call>",
        "\n```\n",
        "{\"name\": \"f\", \"arguments\": {",
        "<tool_call>{\"name\": \"f\", \"arguments\": {}}",
        "'n': True",
        "(",
        "}}</tool_call>",
        "<|tool_call>call:f{n:3,",
        "call:now{}",
        "<|channel>",
        "thought\n",
        "<|constrain|>",
        "<|call|>",
        "json",
        "to=python",
        "<|start|>user",
        "<|channel|>final<|message|>",
        "<|channel|>commentary to=functions.f<|message|>{",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"write\">\n<｜DSML｜parameter name=\"body\" string=\"true\">",
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n",
    ]);
    prop::collection::vec(prop_oneof![4 => markers.prop_map(str::to_owned), 1 => ".{0,4}"], 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_cut_of_any_text_says_the_same(pieces in fragments(), cuts in prop::collection::vec(0usize..400, 0..8), cut: bool) {
        let text = pieces.concat();
        let mut edges: Vec<usize> = cuts.into_iter().filter(|&at| at < text.len() && text.is_char_boundary(at)).collect();
        edges.extend([0, text.len()]);
        edges.sort_unstable();
        for tools in ALL {
            let whole = read(tools, [text.as_str()], cut);
            let parts = read(tools, edges.windows(2).map(|edge| &text[edge[0]..edge[1]]), cut);
            prop_assert_eq!(&parts, &whole, "{:?}: {:?}", tools, text);
            let letters = read(tools, text.split_inclusive(|_| true), cut);
            prop_assert_eq!(&letters, &whole, "{:?}: {:?}", tools, text);
        }
    }

    #[test]
    fn broken_answers_say_the_same_however_they_are_cut(
        which in 0usize..5, changes in prop::collection::vec((0usize..200, 0u8..3), 1..4), size in 1usize..9, cut: bool,
    ) {
        // An answer with parts left out, doubled or moved to the end.
        let tools = ALL[which];
        let mut pieces: Vec<&str> = example(tools).split_inclusive(['>', '\n', '{', ':', ',']).collect();
        for (at, change) in changes {
            let at = at % pieces.len();
            match change {
                0 => drop(pieces.remove(at)),
                1 => pieces.insert(at, pieces[at]),
                _ => {
                    let piece = pieces.remove(at);
                    pieces.push(piece);
                }
            }
        }
        let text = pieces.concat();
        let whole = read(tools, [text.as_str()], cut);
        let letters: Vec<char> = text.chars().collect();
        let parts: Vec<String> = letters.chunks(size).map(|part| part.iter().collect()).collect();
        prop_assert_eq!(read(tools, parts.iter().map(String::as_str), cut), whole, "{:?}: {:?}", tools, text);
    }

    #[test]
    fn markers_of_channels_never_leak(pieces in fragments()) {
        let text = pieces.concat();
        for (tools, markers) in [
            (ToolFormat::Harmony, vec!["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>"]),
            (ToolFormat::Gemma4, vec!["<|channel>", "<channel|>"]),
        ] {
            let parts = read(tools, [text.as_str()], false);
            let broken = parts.iter().any(|part| matches!(part, Part::CallBroken(_)));
            for marker in markers.into_iter().filter(|_| !broken || tools == ToolFormat::Harmony) {
                prop_assert!(!said(&parts).contains(marker), "{:?}: {:?}: {:?}", tools, text, parts);
                prop_assert!(!thought(&parts).contains(marker), "{:?}: {:?}: {:?}", tools, text, parts);
            }
        }
    }

    #[test]
    fn nothing_is_lost(pieces in fragments()) {
        let text = pieces.concat();
        for tools in ALL {
            let mut parser = OutputFormat { tools: Some(tools), reasoning: None }
                .parser(Some(schemas()), ReasoningStart::Unopened);
            let mut parts = Vec::new();
            parser.push(&text, &mut parts);
            parser.finish(false, &mut parts);
            let called = parts.iter().any(|part| matches!(part, Part::CallStart { .. }));
            if !called && tools != ToolFormat::Harmony {
                prop_assert_eq!(said(&parts), text.as_str());
            }
            // What is said was written, in this order.
            let mut letters = text.chars();
            let joints = if tools == ToolFormat::Harmony { "\n" } else { "" };
            for c in said(&parts).chars().filter(|c| !joints.contains(*c)) {
                prop_assert!(letters.any(|letter| letter == c), "{:?}: {:?}: {:?}", tools, text, parts);
            }
            // Whatever is a call has arguments that can be read.
            calls(&parts);
            let open = parts.iter().filter(|part| matches!(part, Part::CallStart { .. })).count();
            let closed = parts.iter().filter(|part| matches!(part, Part::CallEnd | Part::CallBroken(_))).count();
            prop_assert_eq!(open, closed);
        }
    }
}
