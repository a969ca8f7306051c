//! Composition of WGSL: a generated header of constants, then whole fragments of `shaders/`.

use std::fmt::Write as _;

use crate::caps::Caps;
use crate::error::Error;

mod emulate;
mod rounds;
mod unroll;

pub(crate) use rounds::Rounds;

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
pub enum Binding {
    /// A uniform buffer.
    Uniform,
    /// A storage buffer that is read.
    Read,
    /// A storage buffer that is read and written.
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
        $crate::shader::Fragment {
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name)),
        }
    };
}
pub(crate) use fragment;

/// Whose matrices a shader uses.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Matrices {
    Native,
    /// Plain WGSL, see `emulate.rs`.
    Emulated,
}

/// What every kernel numbers its workgroups by.
const WORKGROUP: Fragment = fragment!("common/workgroup.wgsl");

/// The facts that are compiled into a shader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    subgroups: bool,
    matrices: Option<Matrices>,
    unrolled: bool,
    constants: String,
}

impl Header {
    /// Declares that the shader uses subgroup operations.
    pub fn subgroups(mut self) -> Self {
        self.subgroups = true;
        self
    }

    /// Declares that the shader uses native f16 and cooperative matrices, the device's own or
    /// emulated ones; arrays of the former need constant indices.
    pub fn matrices(mut self, caps: &Caps) -> Self {
        self.matrices = Some(match caps.emulates_matrices {
            true => Matrices::Emulated,
            false => Matrices::Native,
        });
        self.unrolled = !caps.emulates_matrices;
        self
    }

    /// Has the loops that are marked for it written out.
    pub fn unrolled(mut self, unrolled: bool) -> Self {
        self.unrolled = unrolled;
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

/// A composed shader, see [`Attention::compose`](crate::Attention::compose); the key of the
/// pipeline cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    label: String,
    wgsl: String,
    /// For each line of `wgsl`, the file and the line in it; the header's lines have no file.
    origins: Vec<(Option<&'static str>, usize)>,
    bindings: &'static [Binding],
    uses_matrices: bool,
}

impl Source {
    /// Puts header, the numbering of workgroups and fragments together.
    pub(crate) fn compose(
        label: impl Into<String>,
        target: Target,
        header: &Header,
        fragments: &[Fragment],
        bindings: &'static [Binding],
    ) -> Self {
        let mut head = String::new();
        if header.subgroups && target == Target::Web {
            // Lanes that shuffle own a row together and so stand under the same conditions, which
            // a browser's analysis, knowing workgroups alone, cannot see.
            head.push_str("enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n");
        }
        if header.matrices.is_some() {
            // Matrix operations stand under conditions that are uniform in a subgroup only.
            head.push_str("enable f16;\ndiagnostic(off, derivative_uniformity);\n");
        }
        if header.matrices == Some(Matrices::Native) {
            head.push_str("enable wgpu_cooperative_matrix;\n");
        }
        let _ = writeln!(head, "const MATRICES: bool = {};", header.matrices.is_some());
        if header.matrices.is_some() {
            let emulated = header.matrices == Some(Matrices::Emulated);
            let _ = writeln!(head, "const EMULATED: bool = {emulated};");
        }
        head.push_str(&header.constants);
        let fragments: Vec<Fragment> =
            std::iter::once(WORKGROUP).chain(fragments.iter().copied()).collect();
        let texts = std::iter::once(head.as_str()).chain(fragments.iter().map(|f| f.text));
        let mut lines: Vec<unroll::Line> = Vec::new();
        for (fragment, text) in texts.enumerate() {
            let numbered = text.lines().enumerate();
            lines.extend(numbered.map(|(line, text)| (text.to_owned(), (fragment, line + 1))));
        }
        if header.unrolled {
            match unroll::unroll(&lines) {
                Ok(unrolled) => lines = unrolled,
                // A fault in `shaders/` that costs speed only: the loops work as they stand.
                Err(fault) => log::error!("not unrolled, {fault:?} of {:?}", fragments),
            }
        }
        if header.matrices == Some(Matrices::Emulated) {
            lines = emulate::emulate(&lines);
        }
        let mut wgsl = String::new();
        for (text, _) in &lines {
            wgsl.push_str(text);
            wgsl.push('\n');
        }
        let name = |fragment: usize| fragment.checked_sub(1).map(|index| fragments[index].name);
        let origins = lines.iter().map(|&(_, (fragment, line))| (name(fragment), line)).collect();
        let uses_matrices = header.matrices.is_some();
        Self { label: label.into(), wgsl, origins, bindings, uses_matrices }
    }

    /// What the kernel binds in group 0, by number. Group 1 is the same for all: the number of a
    /// dispatch's first workgroup, a `u32`.
    pub const fn bindings(&self) -> &'static [Binding] {
        self.bindings
    }

    /// The kernel's label, `attention.tiled` for example.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether the kernel runs on matrix units, the device's own or emulated ones.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) const fn uses_matrices(&self) -> bool {
        self.uses_matrices
    }

    /// How many rounds the loops of an invocation make at most, given constants that only the bounds
    /// name; `None` where a loop has no bound: a fault in `shaders/`, which the tests find.
    pub(crate) fn rounds(&self, more: &[(&str, u32)]) -> Option<Rounds> {
        let fault = match rounds::count(&self.wgsl, more) {
            Ok(rounds) => return Some(rounds),
            Err(fault) => fault,
        };
        let (file, line) = self.origins.get(fault.line).copied().unwrap_or((None, fault.line));
        log::error!("{}, {}:{line}: {}", self.label, file.unwrap_or("header"), fault.what);
        None
    }

    /// The text, as the compiler sees it; the entry point is `main`.
    pub fn wgsl(&self) -> &str {
        &self.wgsl
    }

    /// The files below `shaders/` that the text consists of, in its order.
    pub fn files(&self) -> Vec<&'static str> {
        let mut files: Vec<&'static str> =
            self.origins.iter().filter_map(|&(name, _)| name).collect();
        files.dedup();
        files
    }

    /// A compiler's message with its place mapped back to a file of `shaders/`.
    pub(crate) fn compile_error(&self, message: &str) -> Error {
        let origin = position(message).and_then(|line| self.origins.get(line.checked_sub(1)?));
        let place = origin.map_or_else(String::new, |(file, line)| match file {
            Some(file) => format!("shaders/{file}:{line}: "),
            None => format!("generated header, line {line}: "),
        });
        Error::Shader { label: self.label.clone(), message: format!("{place}{message}") }
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
