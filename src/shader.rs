//! Composition of WGSL: a generated header of constants, then whole fragments of `shaders/`.

use std::fmt::Write as _;

use crate::Error;

/// Which compiler a shader is for; only the header differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// naga, inside wgpu.
    Native,
    /// A browser, which wants optional language features enabled by name.
    Web,
}

impl Target {
    /// The one this program runs on.
    pub const fn current() -> Self {
        if cfg!(target_family = "wasm") { Self::Web } else { Self::Native }
    }
}

/// What a kernel binds at one number; the numbers are the places in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Binding {
    Uniform,
    Read,
    Write,
}

/// A whole file of `shaders/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fragment {
    /// The file's path below `shaders/`.
    pub name: &'static str,
    pub text: &'static str,
}

/// Includes a file of `shaders/` as a [`Fragment`].
macro_rules! fragment {
    ($name:literal) => {
        $crate::shader::Fragment { name: $name, text: include_str!(concat!("../shaders/", $name)) }
    };
    // From a module one folder down.
    (super $name:literal) => {
        $crate::shader::Fragment {
            name: $name,
            text: include_str!(concat!("../../shaders/", $name)),
        }
    };
}
pub(crate) use fragment;

/// The facts that are compiled into a shader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    subgroups: bool,
    constants: String,
}

impl Header {
    /// Declares that the shader uses subgroup operations.
    pub fn subgroups(mut self) -> Self {
        self.subgroups = true;
        self
    }

    /// `const NAME: u32 = value;`
    pub fn size(mut self, name: &str, value: u32) -> Self {
        // Writing to a String cannot fail.
        let _ = writeln!(self.constants, "const {name}: u32 = {value}u;");
        self
    }

    /// `const NAME: bool = value;`
    pub fn switch(mut self, name: &str, value: bool) -> Self {
        let _ = writeln!(self.constants, "const {name}: bool = {value};");
        self
    }
}

/// A composed shader: the key of the pipeline cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    label: String,
    wgsl: String,
    /// Where each fragment starts: its first line in `wgsl`, counted from 1, and its name.
    starts: Vec<(usize, &'static str)>,
    bindings: &'static [Binding],
}

impl Source {
    /// Puts header and fragments together.
    pub fn compose(
        label: impl Into<String>,
        target: Target,
        header: &Header,
        fragments: &[Fragment],
        bindings: &'static [Binding],
    ) -> Self {
        let mut wgsl = String::new();
        if header.subgroups && target == Target::Web {
            wgsl.push_str("enable subgroups;\n");
        }
        wgsl.push_str(&header.constants);
        let mut starts = Vec::new();
        for fragment in fragments {
            let _ = writeln!(wgsl, "\n// ---- shaders/{}", fragment.name);
            starts.push((wgsl.lines().count() + 1, fragment.name));
            wgsl.push_str(fragment.text);
        }
        Self { label: label.into(), wgsl, starts, bindings }
    }

    /// What the kernel binds.
    pub const fn bindings(&self) -> &'static [Binding] {
        self.bindings
    }

    /// The kernel's label, `attention.tiled` for example.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The sum: what the compiler sees.
    pub fn wgsl(&self) -> &str {
        &self.wgsl
    }

    /// A compiler's message with its place mapped back to a file of `shaders/`.
    pub fn compile_error(&self, message: &str) -> Error {
        let place = position(message).map_or_else(String::new, |line| match self.locate(line) {
            Some((file, line)) => format!("shaders/{file}:{line}: "),
            None => format!("generated header, line {line}: "),
        });
        Error::Shader { label: self.label.clone(), message: format!("{place}{message}") }
    }

    /// The file and line behind a line of the sum.
    fn locate(&self, line: usize) -> Option<(&'static str, usize)> {
        let &(start, name) = self.starts.iter().rev().find(|(start, _)| *start <= line)?;
        Some((name, line - start + 1))
    }
}

/// The line in the first `wgsl:LINE:COLUMN` or `:LINE:COLUMN` of a compiler's message.
fn position(message: &str) -> Option<usize> {
    message.split_whitespace().find_map(|word| {
        let mut parts = word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).rsplit(':');
        let _column: usize = parts.next()?.parse().ok()?;
        parts.next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compile_error_names_the_file_and_its_line() {
        let first = Fragment { name: "a.wgsl", text: "fn a() {}\n" };
        let second = Fragment { name: "b.wgsl", text: "fn b() {}\nfn c() { oops }\n" };
        let header = Header::default().size("BLOCK_Q", 64);
        let source = Source::compose("x.y", Target::Native, &header, &[first, second], &[]);
        let line = source.wgsl().lines().position(|l| l.contains("oops")).map(|l| l + 1);
        let message = format!("expected `;` at wgsl:{}:10", line.unwrap_or(0));
        let Error::Shader { message, .. } = source.compile_error(&message) else {
            panic!("not a shader error");
        };
        assert!(message.starts_with("shaders/b.wgsl:2: "), "{message}");
    }

    #[test]
    fn only_browsers_are_told_of_subgroups() {
        let header = Header::default().subgroups();
        let wgsl = |target| Source::compose("x.y", target, &header, &[], &[]).wgsl().to_owned();
        assert!(wgsl(Target::Web).starts_with("enable subgroups;"));
        assert!(!wgsl(Target::Native).contains("enable"));
    }
}
