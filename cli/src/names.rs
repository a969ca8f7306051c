//! The names that a command knows among the tensors of a file, and what else it needs to use each.
//!
//! [`Tensors::get`](crate::input::Tensors::get) takes no other names, and remembers which were read. The
//! rest of the file is then named to the user: nothing in a file is ignored in silence.

use std::collections::BTreeSet;

use wgpu_attention::Error;

/// What a command reads: its name, and its tensors' names with what each needs, `""` for nothing.
pub struct Names {
    command: &'static str,
    tensors: &'static [(&'static str, &'static str)],
    /// Another command that the file may be meant for.
    other: Option<&'static Names>,
}

/// Names of `run --op attention`.
pub static ATTENTION: Names = Names {
    command: "--op attention",
    tensors: &[
        ("q", ""),
        ("k", ""),
        ("v", ""),
        ("out", ""),
        ("alibi_slopes", ""),
        ("key_bias", ""),
        ("bias", ""),
        ("sinks", ""),
        ("query_offset", ""),
        ("mask", "the word `dense` in --mask"),
        ("cu_seqlens_q", "the word `documents` in --mask"),
        ("cu_seqlens_k", "the word `documents` in --mask"),
        ("key_lengths", "the word `lengths` in --mask"),
        ("roles_q", "the word `roles` in --mask"),
        ("roles_k", "the word `roles` in --mask"),
        ("role_table", "the word `roles` in --mask"),
        ("tree_bits", "the word `tree` in --mask"),
        ("block_mask", "--keys blocks"),
        ("block_offsets", "--keys blocks and a file without `block_mask`"),
        ("block_entries", "--keys blocks and a file without `block_mask`"),
        ("key_index_offsets", "--keys indices"),
        ("key_indices", "--keys indices"),
    ],
    other: Some(&LINEAR),
};

/// Names of `run --op linear`.
pub static LINEAR: Names = Names {
    command: "--op linear",
    tensors: &[
        ("q", ""),
        ("k", ""),
        ("v", ""),
        ("out", ""),
        ("cu_seqlens", ""),
        ("state", ""),
        ("normalizer", "--normalize"),
        ("decay", "--rule decay"),
        ("gate", "--rule gated or --rule gated-delta"),
        ("beta", "--rule delta or --rule gated-delta"),
    ],
    other: Some(&ATTENTION),
};

/// Names of `quality`, which computes causal attention without lists from the file.
pub static QUALITY: Names = Names {
    command: "quality",
    tensors: &[
        ("q", ""),
        ("k", ""),
        ("v", ""),
        ("out", ""),
        ("alibi_slopes", ""),
        ("key_bias", ""),
        ("bias", ""),
        ("sinks", ""),
        ("query_offset", ""),
    ],
    other: None,
};

/// The most names in one sentence.
const MOST_NAMES: usize = 8;

impl Names {
    /// The name as the table has it.
    pub fn find(&self, name: &str) -> Option<&'static str> {
        self.tensors.iter().map(|(known, _)| *known).find(|known| *known == name)
    }

    /// What is not used of `file`, the names of all tensors of a file, when the names of `used` are
    /// read behind `prefix`: a sentence for each tensor, or for several that no command knows.
    ///
    /// Tensors of another group are not mentioned, that is, those that start with what stands in
    /// front of another `q`, `k` and `v`.
    pub fn unused(&self, file: &[&str], prefix: &str, used: &BTreeSet<&str>) -> Vec<String> {
        let has = |prefix: &str, name: &str| {
            file.iter().any(|full| full.strip_prefix(prefix).is_some_and(|rest| rest == name))
        };
        let groups = file.iter().filter_map(|name| name.strip_suffix('q'));
        let others: Vec<&str> =
            groups.filter(|group| *group != prefix && has(group, "k") && has(group, "v")).collect();
        let mut sentences = Vec::new();
        let (mut unknown, mut outside) = (Vec::new(), Vec::new());
        for name in file {
            let rest = name.strip_prefix(prefix);
            let of_another = |group: &&str| {
                name.starts_with(group) && (rest.is_none() || group.len() > prefix.len())
            };
            match rest {
                _ if others.iter().any(of_another) => {}
                Some(rest) if used.contains(rest) => {}
                None => outside.push(*name),
                Some(rest) => match self.lacks(rest) {
                    Some(why) => sentences.push(format!("tensor `{name}` is not used: {why}")),
                    None => unknown.push(*name),
                },
            }
        }
        sentences.extend(sentence(&unknown, &format!("{} knows no such name", self.command)));
        let why = format!("the name does not start with --prefix `{prefix}`");
        sentences.extend(sentence(&outside, &why));
        sentences
    }

    /// Why a tensor that was not read is not used; `None` where the reason is its name alone.
    fn lacks(&self, name: &str) -> Option<String> {
        let needs = self.tensors.iter().find(|(known, _)| *known == name).map(|(_, needs)| *needs);
        let other = self.other.filter(|other| other.find(name).is_some());
        let near = self.nearest(name).map(|near| format!("did you mean `{near}`?"));
        match (needs, other, near) {
            (Some(needs), ..) => Some(format!("it needs {needs}")),
            (None, Some(other), None) => Some(format!("it needs {}", other.command)),
            (None, Some(other), Some(near)) => Some(format!("it needs {}; {near}", other.command)),
            (None, None, Some(near)) => {
                Some(format!("{} knows no such name; {near}", self.command))
            }
            (None, None, None) => None,
        }
    }

    /// The known name that one may have meant: a part of this one or the other way round, or the
    /// nearest in letters.
    fn nearest(&self, name: &str) -> Option<&'static str> {
        let known = self.tensors.iter().map(|(known, _)| *known);
        let contains = |long: &str, short: &str| {
            short.len() > 2 && long.split(['_', '.']).any(|word| word == short)
                || short.contains('_') && long.contains(short)
        };
        let distance = |known: &&str| match *known {
            known if contains(name, known) || contains(known, name) => 1,
            known => letters_apart(name, known),
        };
        let longest = |known: &str| known.chars().count().max(name.chars().count());
        known
            .filter(|known| *known != name)
            .filter(|known| {
                let apart = distance(known);
                apart < longest(known) && apart <= longest(known).div_ceil(3)
            })
            .min_by_key(distance)
    }

    /// A refusal by the library in the words of the file: `name` gives the file's own name for the
    /// library's.
    pub fn in_file(error: anyhow::Error, name: impl Fn(&str) -> Option<String>) -> anyhow::Error {
        match error.downcast::<Error>() {
            Ok(Error::Tensor { tensor, expected, got }) => {
                let tensor = name(&tensor).unwrap_or(tensor);
                Error::Tensor { tensor, expected, got }.into()
            }
            Ok(error) => error.into(),
            Err(error) => error,
        }
    }
}

/// One sentence for all tensors that are not used for the same reason.
fn sentence(names: &[&str], why: &str) -> Option<String> {
    let quoted = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    match names {
        [] => None,
        [name] => Some(format!("tensor `{name}` is not used: {why}")),
        names if names.len() <= MOST_NAMES => {
            Some(format!("tensors {} are not used: {why}", quoted(names).join(", ")))
        }
        names => Some(format!(
            "tensors {} and {} others are not used: {why}",
            quoted(&names[..MOST_NAMES]).join(", "),
            names.len() - MOST_NAMES
        )),
    }
}

/// Letters to be put in, taken out or changed to get from one word to the other (Levenshtein).
fn letters_apart(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unused(names: &Names, file: &[&str], prefix: &str, used: &[&str]) -> Vec<String> {
        names.unused(file, prefix, &used.iter().copied().collect())
    }

    #[test]
    fn misspelt_names_are_told_with_what_may_be_meant() {
        for (name, meant) in [
            ("attn_mask", "mask"),
            ("attention_mask", "mask"),
            ("key_length", "key_lengths"),
            ("slopes", "alibi_slopes"),
            ("sink", "sinks"),
            ("biases", "bias"),
            ("query_offsets", "query_offset"),
            ("cu_seqlens", "cu_seqlens_q"),
            ("block_entry", "block_entries"),
            ("key_index", "key_index_offsets"),
            ("Mask", "mask"),
        ] {
            assert_eq!(ATTENTION.nearest(name), Some(meant), "{name}");
        }
        for name in ["gate", "beta", "decay", "state", "x", "tokens", "", "embedding.weight"] {
            assert_eq!(ATTENTION.nearest(name), None, "{name}");
        }
        assert_eq!(LINEAR.nearest("gates"), Some("gate"));
        assert_eq!(letters_apart("", "abc"), 3);
        assert_eq!(letters_apart("kitten", "sitting"), 3);
    }

    #[test]
    fn everything_in_a_file_is_used_or_told() {
        let qkv = ["q", "k", "v"];
        let file = ["q", "k", "v", "mask", "gate", "gates", "text"];
        let said = unused(&ATTENTION, &file, "", &qkv);
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(
            said[..2],
            [
                "tensor `mask` is not used: it needs the word `dense` in --mask",
                "tensor `gate` is not used: it needs --op linear"
            ]
        );
        let unknown = "tensors `gates`, `text` are not used: --op attention knows no such name";
        assert_eq!(said[2], unknown);
        let used: Vec<&str> = [&qkv[..], &["mask"]].concat();
        assert_eq!(unused(&ATTENTION, &file[..4], "", &used), [""; 0]);

        let many: Vec<String> = (0..20).map(|n| format!("weight.{n}")).collect();
        let many: Vec<&str> = qkv.into_iter().chain(many.iter().map(String::as_str)).collect();
        let said = unused(&LINEAR, &many, "", &qkv);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("`weight.7` and 12 others are not used"), "{said:?}");
    }

    /// Layers of a model stand beside each other in a file, with names of their own.
    #[test]
    fn other_groups_of_a_file_are_not_mentioned() {
        let file = ["q", "k", "v", "b.q", "b.k", "b.v", "b.mask", "b.x", "bb.mask"];
        let used = ["q", "k", "v"];
        let said = unused(&ATTENTION, &file, "", &used);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("`bb.mask`") && said[0].contains("did you mean `mask`"),
            "{said:?}"
        );
        let said = unused(&ATTENTION, &file, "b.", &used);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("`b.mask`") && said[1].contains("`b.x`"), "{said:?}");
        // Without a group of its own, a tensor may have been meant for this one.
        let said = unused(&ATTENTION, &file[3..], "b.", &used);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[2].contains("`bb.mask`") && said[2].contains("--prefix `b.`"), "{said:?}");
        // Names that end in `_q` and `_k` are no group.
        let lengths = ["q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"];
        assert_eq!(unused(&ATTENTION, &lengths, "", &used).len(), 2);
    }
}
