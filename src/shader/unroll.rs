//! The one transformation of shader text: loops marked `// unroll` are written out.
//!
//! No compiler between here and the device promises to unroll, and arrays that are to live in
//! registers need constant indices. The mark stands on a line of its own above
//! `for (var i = 0u; i < COUNT; i++) {` (or `i += STEP`), whose bounds are constants; the body is
//! repeated with the variable replaced by its value. The text is valid WGSL either way.

use std::collections::HashMap;

/// One line of text with where it came from: the fragment's number and the line in it.
pub(super) type Line = (String, (usize, usize));

/// A loop that cannot be written out: a fault in `shaders/`, found by the tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub line: (usize, usize),
    pub what: &'static str,
}

const MARK: &str = "// unroll";

/// Writes out every marked loop; nested ones from the outside in.
pub(super) fn unroll(lines: &[Line]) -> Result<Vec<Line>, Malformed> {
    let mut out = Vec::with_capacity(2 * lines.len());
    expand(lines, &constants(lines), &mut out)?;
    Ok(out)
}

/// The values of all `const NAME: u32 = …;` that are made of numbers, names and `+ - * / % | ()`.
fn constants(lines: &[Line]) -> HashMap<String, u32> {
    let mut values = HashMap::new();
    for (text, _) in lines {
        let declared = text
            .strip_prefix("const ")
            .and_then(|rest| rest.split_once(": u32 = "))
            .and_then(|(name, rest)| Some((name, rest.split_once(';')?.0)));
        if let Some((name, expression)) = declared
            && let Some(value) = evaluate(expression, &values)
        {
            values.insert(name.to_owned(), value);
        }
    }
    values
}

fn expand(
    lines: &[Line],
    constants: &HashMap<String, u32>,
    out: &mut Vec<Line>,
) -> Result<(), Malformed> {
    let mut index = 0;
    while index < lines.len() {
        let (text, line) = &lines[index];
        if text.trim() != MARK {
            out.push(lines[index].clone());
            index += 1;
            continue;
        }
        let malformed = |what| Malformed { line: *line, what };
        let head = lines.get(index + 1).ok_or(malformed("nothing follows the mark"))?;
        let (variable, values) = Loop::parse(&head.0, constants)
            .ok_or(malformed("expected a `for` over constants, its brace on the same line"))?;
        let body = index + 2;
        let length = body_length(&lines[body..]).ok_or(malformed("the loop does not end"))?;
        for value in values {
            let number = format!("{value}u");
            let copy: Vec<Line> = lines[body..body + length]
                .iter()
                .map(|(text, line)| (replace_word(text, variable, &number), *line))
                .collect();
            out.push(("{".into(), head.1));
            expand(&copy, constants, out)?;
            out.push(("}".into(), head.1));
        }
        index = body + length + 1;
    }
    Ok(())
}

/// The head of a `for` over constants.
struct Loop;

impl Loop {
    /// The variable and its values.
    fn parse<'a>(
        head: &'a str,
        constants: &HashMap<String, u32>,
    ) -> Option<(&'a str, std::iter::StepBy<std::ops::Range<u32>>)> {
        let inner = head.trim().strip_prefix("for (var ")?.strip_suffix(") {")?;
        let mut parts = inner.split(';').map(str::trim);
        let (variable, start) = parts.next()?.split_once(" = ")?;
        let (tested, end) = parts.next()?.split_once(" < ")?;
        let step = parts.next()?;
        let step = match step.strip_prefix(variable)?.trim() {
            "++" => 1,
            step => evaluate(step.strip_prefix("+= ")?, constants)?,
        };
        let range = evaluate(start, constants)?..evaluate(end, constants)?;
        (tested == variable && step > 0).then(|| (variable, range.step_by(step as usize)))
    }
}

/// Lines up to the brace that closes an already opened one.
fn body_length(lines: &[Line]) -> Option<usize> {
    let mut depth = 1;
    lines.iter().position(|(text, _)| {
        let code = text.split("//").next().unwrap_or(text);
        for c in code.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
        }
        depth == 0
    })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn replace_word(text: &str, word: &str, by: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let end = rest[start..].find(|c| !is_word(c)).map_or(rest.len(), |n| start + n);
        out.push_str(&rest[..start]);
        out.push_str(if &rest[start..end] == word { by } else { &rest[start..end] });
        rest = &rest[end..];
    }
    out + rest
}

/// The value of a constant expression; `None` where it is of another kind.
fn evaluate(expression: &str, constants: &HashMap<String, u32>) -> Option<u32> {
    let mut parser = Expression { rest: expression.trim(), constants };
    let value = parser.sum()?;
    parser.rest.is_empty().then_some(value)
}

struct Expression<'a> {
    rest: &'a str,
    constants: &'a HashMap<String, u32>,
}

impl Expression<'_> {
    fn take(&mut self, operator: char) -> bool {
        match self.rest.strip_prefix(operator) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<u32> {
        let mut value = self.product()?;
        loop {
            if self.take('+') {
                value = value.checked_add(self.product()?)?;
            } else if self.take('-') {
                value = value.checked_sub(self.product()?)?;
            } else if self.take('|') {
                value |= self.product()?;
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<u32> {
        let mut value = self.atom()?;
        loop {
            if self.take('*') {
                value = value.checked_mul(self.atom()?)?;
            } else if self.take('/') {
                value = value.checked_div(self.atom()?)?;
            } else if self.take('%') {
                value = value.checked_rem(self.atom()?)?;
            } else {
                return Some(value);
            }
        }
    }

    fn atom(&mut self) -> Option<u32> {
        if self.take('(') {
            let value = self.sum()?;
            return self.take(')').then_some(value);
        }
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        match word.strip_suffix('u').unwrap_or(word).parse() {
            Ok(number) => Some(number),
            Err(_) => self.constants.get(word).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unrolled(text: &str) -> Result<String, Malformed> {
        let lines: Vec<Line> =
            text.lines().enumerate().map(|(n, line)| (line.to_owned(), (0, n + 1))).collect();
        let out = unroll(&lines)?;
        Ok(out.into_iter().map(|(text, _)| text.trim().to_owned()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn loops_are_written_out_from_the_outside_in() {
        let text = "const ROWS: u32 = 8u / 4u;\n// unroll\nfor (var r = 0u; r < ROWS; r++) {\n\
                    // unroll\nfor (var i = r; i < 4u; i += 2u) {\na[r + i] = ri;\n}\n}\nend";
        assert_eq!(
            unrolled(text).unwrap(),
            "const ROWS: u32 = 8u / 4u; { { a[0u + 0u] = ri; } { a[0u + 2u] = ri; } } \
             { { a[1u + 1u] = ri; } { a[1u + 3u] = ri; } } end"
        );
    }

    #[test]
    fn unmarked_loops_stay() {
        let text = "for (var r = 0u; r < n; r++) {\n}";
        assert_eq!(unrolled(text).unwrap(), text.replace('\n', " "));
    }

    #[test]
    fn bounds_that_are_not_constant_are_a_fault() {
        for head in
            ["for (var r = 0u; r < n; r++) {", "while (x) {", "for (var r = 0u; r < 2u; r++) {"]
        {
            let fault = unrolled(&format!("// unroll\n{head}\nx;")).unwrap_err();
            assert_eq!(fault.line, (0, 1));
        }
    }

    #[test]
    fn expressions() {
        let constants = HashMap::from([("A".to_owned(), 6)]);
        for (text, value) in [
            ("2u + 3u * A", Some(20)),
            ("(A + 3u - 1u) / 3u", Some(2)),
            ("A | 1u", Some(7)),
            ("A % 4u", Some(2)),
            ("B", None),
            ("1u - 2u", None),
            ("select(1u, 2u, X)", None),
            ("A A", None),
        ] {
            assert_eq!(evaluate(text, &constants), value, "{text}");
        }
    }
}
