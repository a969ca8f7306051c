//! Masks as text: the parser and the printer of mask expressions.

use std::fmt;
use std::str::FromStr;

use super::{Mask, Term};
use crate::error::Error;

/// The deepest nesting of brackets: the parser calls itself once a level.
const MAX_DEPTH: usize = 64;

/// The most AND-terms while brackets are multiplied out: `(a | b) & (c | d) & …` doubles them at
/// every `&`, and duplicates that cancel out make a few more than the final four worth allowing.
const MAX_PARTIAL_TERMS: usize = 64;

const A_WORD: &str = "`full`, `causal`, `causal_top_left`, `window(L,R)`, `sink(n)`, `prefix(n)`, \
                      `documents`, `lengths`, `roles`, `tree`, `dense` or `(`";

impl FromStr for Mask {
    type Err = Error;

    /// Parses words joined by `&` and `|`, of which `&` binds tighter, with brackets; white space
    /// means nothing. `window(L)` is `window(L,0)`, and a bound of a window may be `inf`.
    ///
    /// Fails with [`Error::MaskSyntax`] where the text is not an expression, and as
    /// [`Mask::validate`] does where it has too many terms.
    fn from_str(expression: &str) -> Result<Self, Error> {
        let mut parser = Parser {
            expression,
            rest: expression,
            next_column: 1,
            token: Token { text: "", column: 1 },
            depth: 0,
        };
        parser.advance();
        let mask = parser.alternatives()?;
        if !parser.token.text.is_empty() {
            return Err(parser.unexpected("`&`, `|` or the end of the expression"));
        }
        mask.validate()?;
        Ok(mask)
    }
}

/// A word, a number, or a single character of anything else; empty at the end.
#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    /// In characters, from 1.
    column: usize,
}

/// A recursive descent with one token of look-ahead.
struct Parser<'a> {
    expression: &'a str,
    /// What follows `token`.
    rest: &'a str,
    /// The column of the first character of `rest`.
    next_column: usize,
    token: Token<'a>,
    /// Open brackets.
    depth: usize,
}

impl Parser<'_> {
    /// Takes the next token from the text.
    fn advance(&mut self) {
        let text = self.rest.trim_start();
        let blank = &self.rest[..self.rest.len() - text.len()];
        let column = self.next_column + blank.chars().count();
        let in_word = |c: char| c.is_alphanumeric() || c == '_';
        let end = match text.chars().next() {
            Some(first) if in_word(first) => text.find(|c| !in_word(c)).unwrap_or(text.len()),
            Some(first) => first.len_utf8(),
            None => 0,
        };
        let (token, rest) = text.split_at(end);
        self.token = Token { text: token, column };
        self.rest = rest;
        self.next_column = column + token.chars().count();
    }

    /// Steps over `text` if it stands here.
    fn take(&mut self, text: &str) -> bool {
        let here = self.token.text == text;
        if here {
            self.advance();
        }
        here
    }

    /// Steps over `text`, or fails with the list of what could have stood here.
    fn require(&mut self, text: &str, expected: &str) -> Result<(), Error> {
        if self.take(text) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&self, expected: &str) -> Error {
        let got = match self.token.text {
            "" => "the end of the expression".to_owned(),
            text => format!("`{text}`"),
        };
        self.error(self.token.column, expected, got)
    }

    fn error(&self, column: usize, expected: impl Into<String>, got: String) -> Error {
        Error::MaskSyntax {
            expression: self.expression.to_owned(),
            column,
            expected: expected.into(),
            got,
        }
    }

    /// `conjunction ('|' conjunction)*`
    fn alternatives(&mut self) -> Result<Mask, Error> {
        let mut mask = self.conjunction()?;
        loop {
            let column = self.token.column;
            if !self.take("|") {
                return Ok(mask);
            }
            mask = mask | self.conjunction()?;
            self.check_terms(&mask, column)?;
        }
    }

    /// `factor ('&' factor)*`
    fn conjunction(&mut self) -> Result<Mask, Error> {
        let mut mask = self.factor()?;
        loop {
            let column = self.token.column;
            if !self.take("&") {
                return Ok(mask);
            }
            mask = mask & self.factor()?;
            self.check_terms(&mask, column)?;
        }
    }

    /// Refuses what the operator at `column` has made too large.
    fn check_terms(&self, mask: &Mask, column: usize) -> Result<(), Error> {
        let terms = mask.terms().len();
        if terms > MAX_PARTIAL_TERMS {
            let expected =
                format!("at most {MAX_PARTIAL_TERMS} AND-terms while brackets are multiplied out");
            return Err(self.error(column, expected, format!("{terms} terms")));
        }
        Ok(())
    }

    /// `word | '(' alternatives ')'`
    fn factor(&mut self) -> Result<Mask, Error> {
        let column = self.token.column;
        if !self.take("(") {
            return self.word();
        }
        if self.depth == MAX_DEPTH {
            let expected = format!("at most {MAX_DEPTH} brackets within each other");
            return Err(self.error(column, expected, "one more".to_owned()));
        }
        self.depth += 1;
        let mask = self.alternatives()?;
        self.require(")", "`&`, `|` or `)`")?;
        self.depth -= 1;
        Ok(mask)
    }

    fn word(&mut self) -> Result<Mask, Error> {
        let mask = match self.token.text {
            "full" => Mask::full(),
            "causal" => Mask::causal(),
            "causal_top_left" => Mask::causal_top_left(),
            "documents" => Mask::documents(),
            "lengths" => Mask::lengths(),
            "roles" => Mask::roles(),
            "tree" => Mask::tree(),
            "dense" => Mask::dense(),
            "window" => return self.window(),
            "sink" => return Ok(Mask::sink(self.count()?)),
            "prefix" => return Ok(Mask::prefix(self.count()?)),
            _ => return Err(self.unexpected(A_WORD)),
        };
        self.advance();
        Ok(mask)
    }

    /// `word '(' number ')'`
    fn count(&mut self) -> Result<u32, Error> {
        self.advance();
        self.require("(", "`(`")?;
        let count = self.number("a number")?;
        self.require(")", "`)`")?;
        Ok(count)
    }

    /// `'window' '(' bound (',' bound)? ')'`
    fn window(&mut self) -> Result<Mask, Error> {
        self.advance();
        self.require("(", "`(`")?;
        let left = self.bound()?;
        let right = if self.take(",") {
            let right = self.bound()?;
            self.require(")", "`)`")?;
            right
        } else {
            self.require(")", "`,` or `)`")?;
            Some(0)
        };
        Ok(Mask::window(left, right))
    }

    /// A number, or `inf` for none.
    fn bound(&mut self) -> Result<Option<u32>, Error> {
        if self.take("inf") { Ok(None) } else { self.number("a number or `inf`").map(Some) }
    }

    fn number(&mut self, expected: &str) -> Result<u32, Error> {
        let digits = self.token.text;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.unexpected(expected));
        }
        // Digits fail to parse for one reason only: there are too many of them.
        let Ok(number) = digits.parse() else {
            return Err(self.unexpected(&format!("{expected} (at most {})", u32::MAX)));
        };
        self.advance();
        Ok(number)
    }
}

impl fmt::Display for Mask {
    /// Writes the normal form: the terms, joined by ` | `. It parses back to an equal mask.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            write!(f, "{term}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Term {
    /// Writes the words that are set, in the order of the fields, joined by ` & `; `full` if none
    /// is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = |bound: Option<u32>| bound.map_or("inf".to_owned(), |keys| keys.to_string());
        let plain = |set: bool, word: &str| set.then(|| word.to_owned());
        let words: Vec<String> = [
            plain(self.causal, "causal"),
            plain(self.causal_top_left, "causal_top_left"),
            self.window.map(|(left, right)| format!("window({},{})", bound(left), bound(right))),
            self.sink.map(|n| format!("sink({n})")),
            self.prefix.map(|n| format!("prefix({n})")),
            plain(self.documents, "documents"),
            plain(self.lengths, "lengths"),
            plain(self.roles, "roles"),
            plain(self.tree, "tree"),
            plain(self.dense, "dense"),
        ]
        .into_iter()
        .flatten()
        .collect();
        f.write_str(if words.is_empty() { "full" } else { "" })?;
        f.write_str(&words.join(" & "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The column, what was expected and what came, of an expression that does not parse.
    fn refusal(expression: &str) -> (usize, String, String) {
        match expression.parse::<Mask>() {
            Err(Error::MaskSyntax { expression: text, column, expected, got }) => {
                assert_eq!(text, expression);
                (column, expected, got)
            }
            other => panic!("{expression:?} gave {other:?}"),
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        for (expression, column, expected, got) in [
            ("", 1, A_WORD, "the end of the expression"),
            ("   ", 4, A_WORD, "the end of the expression"),
            ("foo", 1, A_WORD, "`foo`"),
            ("Causal", 1, A_WORD, "`Causal`"),
            ("causal &", 9, A_WORD, "the end of the expression"),
            ("causal & | full", 10, A_WORD, "`|`"),
            ("causal causal", 8, "`&`, `|` or the end of the expression", "`causal`"),
            ("causal)", 7, "`&`, `|` or the end of the expression", "`)`"),
            ("(causal", 8, "`&`, `|` or `)`", "the end of the expression"),
            ("()", 2, A_WORD, "`)`"),
            ("full(3)", 5, "`&`, `|` or the end of the expression", "`(`"),
            ("sink", 5, "`(`", "the end of the expression"),
            ("sink 4", 6, "`(`", "`4`"),
            ("sink()", 6, "a number", "`)`"),
            ("sink(inf)", 6, "a number", "`inf`"),
            ("sink(4x)", 6, "a number", "`4x`"),
            ("sink(4,5)", 7, "`)`", "`,`"),
            ("sink(4294967296)", 6, "a number (at most 4294967295)", "`4294967296`"),
            ("window(-1)", 8, "a number or `inf`", "`-`"),
            ("window(1;2)", 9, "`,` or `)`", "`;`"),
            ("window(1,)", 10, "a number or `inf`", "`)`"),
            ("window(1,2,3)", 11, "`)`", "`,`"),
            ("causal \u{2227} tree", 8, "`&`, `|` or the end of the expression", "`\u{2227}`"),
            // Columns are characters, not bytes.
            ("\u{2003}\u{2003}größe", 3, A_WORD, "`größe`"),
        ] {
            assert_eq!(
                refusal(expression),
                (column, expected.into(), got.into()),
                "{expression:?}"
            );
        }
    }

    #[test]
    fn white_space_means_nothing() {
        let dense: Mask = "causal&(window(3,inf)|sink(4))".parse().unwrap();
        let airy: Mask = "\tcausal &\n( window ( 3 , inf ) | sink( 4 ) ) ".parse().unwrap();
        assert_eq!(dense, airy);
        assert_eq!("window(3)".parse::<Mask>().unwrap(), Mask::window(Some(3), Some(0)));
    }

    #[test]
    fn and_binds_tighter_than_or() {
        let mask: Mask = "tree | causal & lengths | sink(2)".parse().unwrap();
        assert_eq!(mask, Mask::tree() | (Mask::causal() & Mask::lengths()) | Mask::sink(2));
    }

    #[test]
    fn prints_the_normal_form() {
        for (expression, printed) in [
            ("full", "full"),
            ("full & full", "full"),
            ("full & tree", "tree"),
            ("full | tree", "full | tree"),
            ("window(7) & causal", "causal & window(7,0)"),
            ("window(9,1) & window(inf,3)", "window(9,1)"),
            ("window(inf,inf)", "window(inf,inf)"),
            ("causal & (window(255,0) | sink(4))", "causal & window(255,0) | causal & sink(4)"),
            (
                "dense & tree & roles & lengths & documents & prefix(1) & sink(2) & causal_top_left",
                "causal_top_left & sink(2) & prefix(1) & documents & lengths & roles & tree & dense",
            ),
        ] {
            assert_eq!(expression.parse::<Mask>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |depth| format!("{}full{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(nested(MAX_DEPTH).parse::<Mask>().unwrap(), Mask::full());
        assert_eq!(refusal(&nested(MAX_DEPTH + 1)).0, MAX_DEPTH + 1);
        assert_eq!(refusal(&"(".repeat(1_000_000)).0, MAX_DEPTH + 1);
        // Brackets one after the other are not nested.
        assert!(["(full)"; 1000].join("&").parse::<Mask>().is_ok());
    }

    #[test]
    fn multiplying_out_is_limited() {
        let words: Vec<_> = (0..100).map(|n| format!("sink({n})")).collect();
        let (column, expected, got) = refusal(&words.join("|"));
        assert_eq!(column, words[..MAX_PARTIAL_TERMS].join("|").len() + 1);
        assert!(expected.contains("at most 64"), "{expected}");
        assert_eq!(got, "65 terms");

        // Written out this has 2 to the power of 9 terms; it stops at the 7th bracket.
        let words = "causal causal_top_left documents lengths roles tree dense sink(1) prefix(1)";
        let factors: Vec<_> = words.split(' ').map(|word| format!("({word}|full)")).collect();
        let (column, _, got) = refusal(&factors.join("&"));
        assert_eq!(column, factors[..6].join("&").len() + 1);
        assert_eq!(got, "128 terms");

        let error = "(sink(1)|sink(2)|sink(3))&(prefix(1)|prefix(2))".parse::<Mask>().unwrap_err();
        let Error::Config { expected, got, .. } = error else { panic!("{error:?}") };
        assert!(expected.contains("at most 4 AND-terms"), "{expected}");
        assert!(got.starts_with("6 terms"), "{got}");
    }
}
