//! How many rounds the loops of a kernel make, counted in its text: for drivers that end the loops of
//! an invocation after so many rounds together ([`Caps::loop_rounds`](crate::Caps::loop_rounds)).
//!
//! Every loop counts, whatever a compiler may write out, and both sides of every branch that constants
//! do not decide: the count is never too small. A loop over constants is read as it stands:
//! `for (var i = 0u; i < COUNT; i++)` or `i += STEP`, where the start may be anything. Any other loop
//! has a line `// rounds: EXPRESSION` above it, over the constants of the text and those that the
//! caller adds: an upper bound for each time that the loop is entered. `WALK` says that the loop
//! follows the walk over keys, tokens or parts, which a plan can split: it makes so many rounds in
//! all, however often it is entered; `WALK * EXPRESSION` makes more of them, `WALK / EXPRESSION` fewer.

use std::collections::HashMap;

/// What one invocation's loops make: `fixed + walked · walk` rounds, for a walk of `walk` steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rounds {
    pub fixed: u64,
    pub walked: u64,
}

/// A loop without a bound: a fault in `shaders/`, found by the tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uncounted {
    /// The line of the text, from 0.
    pub line: usize,
    pub what: &'static str,
}

const MARK: &str = "// rounds: ";
const WALK: &str = "WALK";

impl Rounds {
    /// The longest walk within `limit` rounds, none where not even one step is.
    pub fn walk_within(self, limit: u32) -> Option<u64> {
        let left = u64::from(limit).checked_sub(self.fixed)?;
        let steps = left.checked_div(self.walked).unwrap_or(u64::MAX);
        (steps > 0).then_some(steps)
    }

    fn add(&mut self, other: Self) {
        self.fixed = self.fixed.saturating_add(other.fixed);
        self.walked = self.walked.saturating_add(other.walked);
    }
}

/// Counts the rounds of the entry point `main`, given constants that the text lacks.
pub(super) fn count(text: &str, more: &[(&str, u32)]) -> Result<Rounds, Uncounted> {
    let tokens = tokens(text);
    let functions = functions(&tokens);
    let mut constants = constants(text);
    constants.extend(more.iter().map(|&(name, value)| (name.to_owned(), i64::from(value))));
    let mut counter = Counter { tokens: &tokens, functions, constants, known: HashMap::new() };
    counter.function("main")
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// Words, single signs, and marks whole.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (line, whole) in text.lines().enumerate() {
        if let Some(at) = whole.find(MARK) {
            tokens.push(Token { text: &whole[at..], line });
            continue;
        }
        let mut rest = whole.split("//").next().unwrap_or(whole);
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (text, after) = rest.split_at(word.max(first.len_utf8()));
            if !text.trim().is_empty() {
                tokens.push(Token { text, line });
            }
            rest = after;
        }
    }
    tokens
}

/// Where the body of each function begins, behind its brace.
fn functions<'a>(tokens: &[Token<'a>]) -> HashMap<&'a str, usize> {
    let mut functions = HashMap::new();
    for (index, pair) in tokens.windows(2).enumerate() {
        if pair[0].text == "fn"
            && let Some(body) = tokens[index..].iter().position(|token| token.text == "{")
        {
            functions.insert(pair[1].text, index + body + 1);
        }
    }
    functions
}

/// The values of all `const NAME: … = …;` that are numbers or truths.
fn constants(text: &str) -> HashMap<String, i64> {
    let mut values = HashMap::new();
    for line in text.lines() {
        if let Some((name, rest)) = line.strip_prefix("const ").and_then(|c| c.split_once(':'))
            && let Some((_, expression)) = rest.split_once('=')
            && let Some((expression, _)) = expression.split_once(';')
            && let Some(value) = evaluate(expression, &values)
        {
            values.insert(name.trim().to_owned(), value);
        }
    }
    values
}

struct Counter<'a> {
    tokens: &'a [Token<'a>],
    functions: HashMap<&'a str, usize>,
    constants: HashMap<String, i64>,
    known: HashMap<&'a str, Rounds>,
}

/// How often a loop goes round: each time, or in all for so many steps of the walk.
enum Trips {
    Each(u64),
    Walk { times: u64, steps: u64 },
}

/// What stands between two braces.
struct Block {
    rounds: Rounds,
    /// The place behind it.
    end: usize,
    /// Whether nothing is reached behind it: it ends with a `return`.
    returns: bool,
}

impl<'a> Counter<'a> {
    fn function(&mut self, name: &'a str) -> Result<Rounds, Uncounted> {
        if let Some(rounds) = self.known.get(name) {
            return Ok(*rounds);
        }
        let Some(&body) = self.functions.get(name) else { return Ok(Rounds::default()) };
        let rounds = self.block(body)?.rounds;
        self.known.insert(name, rounds);
        Ok(rounds)
    }

    /// The rounds of what stands up to the closing brace.
    fn block(&mut self, mut at: usize) -> Result<Block, Uncounted> {
        let mut block = Block { rounds: Rounds::default(), end: at, returns: false };
        let mut mark = None;
        while let Some(&token) = self.tokens.get(at) {
            let bound = mark.take();
            let inner = match token.text {
                "}" => break,
                _ if block.returns => {
                    Block { rounds: Rounds::default(), end: at + 1, returns: true }
                }
                "{" => self.block(at + 1)?,
                "for" | "while" | "loop" => self.repeated(at, bound)?,
                "if" => self.branches(at)?,
                text => {
                    mark = text.strip_prefix(MARK);
                    let (rounds, returns) = (self.call(at)?, text == "return");
                    // What is returned may itself be called.
                    let end = if returns { self.statement(at, &mut block)? } else { at + 1 };
                    Block { rounds, end, returns }
                }
            };
            block.rounds.add(inner.rounds);
            block.returns |= inner.returns;
            at = inner.end;
        }
        block.end = at + 1;
        Ok(block)
    }

    /// Adds the calls of a statement, and gives the place behind it.
    fn statement(&mut self, at: usize, block: &mut Block) -> Result<usize, Uncounted> {
        let length = self.tokens[at..].iter().position(|token| token.text == ";");
        let end = at + length.unwrap_or(self.tokens.len() - at);
        for part in at..end {
            block.rounds.add(self.call(part)?);
        }
        Ok(end)
    }

    /// The place of the brace that opens the next block.
    fn opening(&self, at: usize) -> usize {
        let length = self.tokens[at..].iter().position(|token| token.text == "{");
        at + length.unwrap_or(self.tokens.len() - at)
    }

    /// The text between two places.
    fn text(&self, tokens: std::ops::Range<usize>) -> String {
        self.tokens[tokens].iter().map(|token| token.text).collect()
    }

    /// The rounds of `if (…) {…} else …`: of one side where constants decide, else of all.
    fn branches(&mut self, at: usize) -> Result<Block, Uncounted> {
        let open = self.opening(at);
        let condition = evaluate(&self.text(at + 1..open), &self.constants);
        let mut rounds = Rounds::default();
        for part in at + 1..open {
            rounds.add(self.call(part)?);
        }
        let side = self.block(open + 1)?;
        let end = side.end;
        if condition != Some(0) {
            rounds.add(side.rounds);
        }
        let mut all =
            Block { rounds, end, returns: condition.is_some_and(|c| c != 0) && side.returns };
        if self.tokens.get(end).is_some_and(|token| token.text == "else") {
            let other = match self.tokens.get(end + 1).map(|token| token.text) {
                Some("if") => self.branches(end + 1)?,
                _ => self.block(self.opening(end) + 1)?,
            };
            if condition.is_none_or(|c| c == 0) {
                all.rounds.add(other.rounds);
            }
            all.returns |= other.returns && (condition == Some(0) || side.returns);
            all.end = other.end;
        }
        Ok(all)
    }

    /// The rounds of the function that is called at a token, if one is.
    fn call(&mut self, at: usize) -> Result<Rounds, Uncounted> {
        match self.tokens.get(at..at + 2) {
            Some([name, Token { text: "(", .. }]) => self.function(name.text),
            _ => Ok(Rounds::default()),
        }
    }

    /// The rounds of a loop.
    fn repeated(&mut self, at: usize, mark: Option<&str>) -> Result<Block, Uncounted> {
        let uncounted = |what| Uncounted { line: self.tokens[at].line, what };
        let open = self.opening(at);
        let head = self.text(at + 1..open);
        let trips = match mark {
            Some(bound) => self.marked(bound).ok_or(uncounted("the bound is no expression"))?,
            None => Trips::Each(self.trips(&head).ok_or(uncounted(
                "a loop that is not over constants has its bound above it: `// rounds: N`",
            ))?),
        };
        let mut each = Rounds { fixed: 1, walked: 0 };
        for part in at + 1..open {
            each.add(self.call(part)?);
        }
        // The head is asked once more than the body runs.
        let entered = each;
        let body = self.block(open + 1)?;
        each.add(body.rounds);
        let (times, walked) = match trips {
            Trips::Each(times) => (each.fixed.saturating_mul(times), 0),
            Trips::Walk { times, steps } => (0, each.fixed.saturating_mul(times).div_ceil(steps)),
        };
        let rounds = Rounds {
            fixed: entered.fixed.saturating_add(times),
            walked: each.walked.saturating_add(walked),
        };
        Ok(Block { rounds, end: body.end, returns: false })
    }

    fn marked(&self, bound: &str) -> Option<Trips> {
        let value = |text: &str| u64::try_from(evaluate(text, &self.constants)?).ok();
        let Some(factor) = bound.trim().strip_prefix(WALK) else {
            return Some(Trips::Each(value(bound)?));
        };
        let factor = factor.trim();
        let (times, steps) = match factor.strip_prefix('/') {
            Some(steps) => (1, value(steps)?),
            None if factor.is_empty() => (1, 1),
            None => (value(factor.strip_prefix('*')?)?, 1),
        };
        (steps > 0).then_some(Trips::Walk { times, steps })
    }

    /// The rounds of `(var i = START; i < END; i += STEP)`; a start that is not known is 0.
    fn trips(&self, head: &str) -> Option<u64> {
        let inner = head.strip_prefix("(var")?.strip_suffix(')')?;
        let mut parts = inner.split(';');
        let (variable, start) = parts.next()?.split_once('=')?;
        let end = parts.next()?.strip_prefix(variable)?.strip_prefix('<')?;
        let step = match parts.next()?.strip_prefix(variable)? {
            "++" => 1,
            step => evaluate(step.strip_prefix("+=")?, &self.constants)?,
        };
        let start = evaluate(start, &self.constants).unwrap_or(0).max(0);
        let length = (evaluate(end, &self.constants)? - start).max(0);
        (step > 0).then(|| (length as u64).div_ceil(step as u64))
    }
}

/// The value of a constant expression, truths as 0 and 1; of the smaller of two numbers of which one
/// is not known, the other. `None` where it is of another kind.
fn evaluate(expression: &str, constants: &HashMap<String, i64>) -> Option<i64> {
    let tokens = tokens(expression);
    let mut parser = Expression { tokens: &tokens, constants };
    let value = parser.binary(0);
    if parser.tokens.is_empty() { value } else { None }
}

/// Operators by how weakly they bind.
const OPERATORS: [&[&str]; 6] =
    [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["|"], &["+", "-"], &["*", "/", "%"]];

struct Expression<'a> {
    tokens: &'a [Token<'a>],
    constants: &'a HashMap<String, i64>,
}

impl Expression<'_> {
    /// Takes an operator of one or two signs.
    fn take(&mut self, operator: &str) -> bool {
        let signs = operator.len();
        let found = self.tokens.len() >= signs
            && self.tokens.iter().zip(operator.chars()).all(|(t, sign)| t.text.starts_with(sign));
        if found {
            self.tokens = &self.tokens[signs..];
        }
        found
    }

    fn binary(&mut self, level: usize) -> Option<i64> {
        let Some(operators) = OPERATORS.get(level) else { return self.atom() };
        let mut left = self.binary(level + 1);
        // `|` alone is not the start of `||`.
        let next = |parser: &mut Self| {
            let double = parser.tokens.get(..2).is_some_and(|t| t[0].text == t[1].text);
            operators.iter().copied().find(|o| !(double && *o == "|") && parser.take(o))
        };
        while let Some(operator) = next(self) {
            let right = self.binary(level + 1);
            left = match (operator, left, right) {
                // One side decides.
                ("&&", Some(0), _) | ("&&", _, Some(0)) => Some(0),
                ("||", Some(one), _) | ("||", _, Some(one)) if one != 0 => Some(1),
                _ => left.zip(right).and_then(|(a, b)| apply(operator, a, b)),
            };
        }
        left
    }

    fn atom(&mut self) -> Option<i64> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        match first.text {
            "(" => {
                let value = self.binary(0);
                self.take(")").then_some(value)?
            }
            "!" => self.atom().map(|value| i64::from(value == 0)),
            "-" => self.atom().map(|value| -value),
            "true" => Some(1),
            "false" => Some(0),
            name if self.take("(") => {
                let mut arguments = vec![self.binary(0)];
                while self.take(",") {
                    arguments.push(self.binary(0));
                }
                self.take(")").then_some(())?;
                match (name, &arguments[..]) {
                    ("i32" | "u32", [x]) => *x,
                    ("min", [a, b]) => [*a, *b].into_iter().flatten().min(),
                    ("max", [a, b]) => Some((*a)?.max((*b)?)),
                    ("select", [a, b, condition]) => {
                        if (*condition)? != 0 {
                            *b
                        } else {
                            *a
                        }
                    }
                    _ => None,
                }
            }
            word => {
                let digits = word.strip_suffix(['u', 'i']).unwrap_or(word);
                digits.parse().ok().or_else(|| self.constants.get(word).copied())
            }
        }
    }
}

fn apply(operator: &str, a: i64, b: i64) -> Option<i64> {
    match operator {
        "||" => Some(i64::from(a != 0 || b != 0)),
        "&&" => Some(i64::from(a != 0 && b != 0)),
        "==" => Some(i64::from(a == b)),
        "!=" => Some(i64::from(a != b)),
        "<=" => Some(i64::from(a <= b)),
        ">=" => Some(i64::from(a >= b)),
        "<" => Some(i64::from(a < b)),
        ">" => Some(i64::from(a > b)),
        "|" => Some(a | b),
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" => a.checked_div(b),
        "%" => a.checked_rem(b),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(text: &str) -> Result<Rounds, Uncounted> {
        count(text, &[("MORE", 7)])
    }

    #[test]
    fn loops_over_constants_count_what_they_contain() {
        let text = "const N: u32 = 2u * 5u;\nfn f() -> u32 {\nfor (var i = t; i < N; i += 4u) { }\n\
                    }\nfn main() {\nfor (var i = 2u; i < N; i++) {\nx = f() + f();\n}\n}";
        // 8 rounds and the last question; two calls of 3 + 1 in each.
        assert_eq!(rounds(text), Ok(Rounds { fixed: 8 + 1 + 8 * 2 * 4, walked: 0 }));
    }

    #[test]
    fn what_follows_the_walk_does_so_once() {
        let text = "fn main() {\n// rounds: WALK\nwhile (x) {\n// rounds: WALK\n\
                    for (var k = s; k < e; k++) {\n// rounds: 3u\nwhile (y) {}\n}\n}\n}";
        // Outer: a round each and the entry of the inner one; inner: a round and 3 + 1.
        assert_eq!(rounds(text), Ok(Rounds { fixed: 1, walked: (1 + 1) + (1 + 4) }));
        assert_eq!(rounds(text).unwrap().walk_within(15), Some(2));
        assert_eq!(rounds(text).unwrap().walk_within(7), None);
        let text = |bound| {
            format!(
                "const B: u32 = 8u;\nfn main() {{\n// rounds: {bound}\nwhile (x) {{\n\
                                    for (var i = 0u; i < 9u; i++) {{ }}\n}}\n}}"
            )
        };
        assert_eq!(rounds(&text("WALK * B")), Ok(Rounds { fixed: 1, walked: 88 }));
        assert_eq!(rounds(&text("WALK / B")), Ok(Rounds { fixed: 1, walked: 2 }));
        assert_eq!(rounds(&text("MORE")), Ok(Rounds { fixed: 1 + 7 * 11, walked: 0 }));
    }

    #[test]
    fn constants_decide_between_branches() {
        let branch = |condition: &str| {
            let text = format!(
                "const ON: bool = true;\nfn f() -> u32 {{\nif ({condition}) {{\nreturn g(1u);\n}} else {{\n\
                 for (var i = 0u; i < 100u; i++) {{ }}\n}}\nfor (var i = 0u; i < 1000u; i++) {{ }}\n\
                 return 0u;\n}}\nfn g(x: u32) -> u32 {{\nfor (var i = 0u; i < 10u; i++) {{ }}\nreturn x;\n}}\n\
                 fn main() {{\nx = f();\n}}"
            );
            rounds(&text).unwrap().fixed
        };
        assert_eq!(branch("ON"), 11);
        assert_eq!(branch("x || ON"), 11);
        assert_eq!(branch("!ON"), 101 + 1001);
        assert_eq!(branch("x && !ON"), 101 + 1001);
        assert_eq!(branch("x"), 11 + 101 + 1001);
    }

    #[test]
    fn loops_without_a_bound_are_a_fault() {
        for head in ["while (x) {", "for (var i = 0u; i < n; i++) {", "for (; a(); i++) {"] {
            let text = format!("fn main() {{\n{head}\n}}\n}}");
            assert_eq!(rounds(&text).unwrap_err().line, 1, "{head}");
        }
        assert!(rounds("fn main() {\n// rounds: n\nwhile (x) {\n}\n}").is_err());
    }

    #[test]
    fn expressions() {
        let constants = HashMap::from([("A".to_owned(), 6), ("ON".to_owned(), 1)]);
        for (text, value) in [
            ("2u + 3u * A", Some(20)),
            ("min(count, 4u)", Some(4)),
            ("max(count, 4u)", None),
            ("select(1u, A, ON && A <= 6u)", Some(6)),
            ("select(1u, A, !ON || A != 6u)", Some(1)),
            ("select(1u, 2u, unknown)", None),
            ("i32(A | 1u) - 2", Some(5)),
            ("n / 2u", None),
            ("A A", None),
        ] {
            assert_eq!(evaluate(text, &constants), value, "{text}");
        }
    }
}
