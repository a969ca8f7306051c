//! Input files: safetensors, and their tensors as the library wants them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::Result;
use safetensors::{Dtype, SafeTensors};
use wgpu_attention::{DType, Error};

use crate::bad_input;
use crate::names::Names;

/// A whole file in memory.
pub struct File {
    name: String,
    bytes: Vec<u8>,
}

impl File {
    #[cfg(any(test, fuzzing))]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { name: "drawn".into(), bytes }
    }

    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path)
            .map_err(|error| bad_input(format!("cannot read `{name}`: {error}")))?;
        Ok(Self { name, bytes })
    }

    /// The tensors whose names start with `prefix`, by the rest of their names, for a command that
    /// knows `names`.
    pub fn tensors<'a>(&'a self, prefix: &'a str, names: &'static Names) -> Result<Tensors<'a>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| {
            bad_input(format!(
                "`{}` is not a whole safetensors file ({} bytes): {error}",
                self.name,
                self.bytes.len()
            ))
        })?;
        Ok(Tensors { file: &self.name, prefix, names, tensors, used: RefCell::default() })
    }
}

/// The tensors of a file.
pub struct Tensors<'a> {
    file: &'a str,
    prefix: &'a str,
    names: &'static Names,
    tensors: SafeTensors<'a>,
    /// The names that were read, without prefix.
    used: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Tensors<'a> {
    /// A tensor that is about to be used: one of the command's names.
    pub fn get(&self, name: &'static str) -> Option<Tensor<'a>> {
        debug_assert!(self.names.find(name).is_some(), "`{name}` is not in the table of names");
        let full = format!("{}{name}", self.prefix);
        let view = self.tensors.tensor(&full).ok()?;
        self.used.borrow_mut().insert(name);
        let name = full;
        Some(Tensor { name, dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data() })
    }

    /// A tensor that must be there; `reason` says why.
    pub fn require(&self, name: &'static str, reason: &str) -> Result<Tensor<'a>> {
        self.get(name).ok_or_else(|| {
            let mut names = self.tensors.names();
            names.sort_unstable();
            bad_input(format!(
                "tensor `{}{name}`: expected in `{}` {reason}, got a file that holds {}",
                self.prefix,
                self.file,
                if names.is_empty() { "no tensors".into() } else { names.join(", ") }
            ))
        })
    }

    /// Hands a sentence to `warn` for all that the file holds and that was not used, once everything
    /// was read; where `strict` refuses it instead.
    pub fn check_unused(&self, strict: bool, warn: &dyn Fn(&str)) -> Result<()> {
        let mut file = self.tensors.names();
        file.sort_unstable();
        let unused = self.names.unused(&file, self.prefix, &self.used.borrow());
        if strict && !unused.is_empty() {
            return Err(bad_input(format!("--strict: {}", unused.join("; "))));
        }
        unused.iter().for_each(|sentence| warn(sentence));
        Ok(())
    }

    /// A refusal by the library with the file's own name for a tensor; `listed` are the names of the
    /// list's offsets and entries, where the file has a list.
    pub fn name_in_file(&self, error: anyhow::Error, listed: [&'static str; 2]) -> anyhow::Error {
        Names::in_file(error, |tensor| {
            let name = match tensor {
                "query" => "q",
                "key" => "k",
                "value" => "v",
                "starts" => "cu_seqlens",
                "list_offsets" => listed[0],
                "list_entries" => listed[1],
                // The result, not the file's.
                "out" => return None,
                other => other,
            };
            let used = self.used.borrow().contains(name);
            used.then(|| format!("{}{name}", self.prefix))
        })
    }
}

/// A tensor of a file.
pub struct Tensor<'a> {
    /// The full name, with its prefix.
    pub name: String,
    pub bytes: &'a [u8],
    dtype: Dtype,
    shape: Vec<usize>,
}

/// What the size of an axis may be.
#[derive(Clone, Copy)]
pub enum Size {
    /// Anything; this tensor is the one that tells.
    Any,
    /// This, as another tensor has it.
    Is(u32),
    /// This, or 1 for sharing one along the axis.
    OrOne(u32),
}

impl Size {
    fn allows(self, size: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Is(wanted) => size == wanted,
            Self::OrOne(wanted) => size == wanted || size == 1,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Is(size) => write!(f, "{size}"),
            Self::OrOne(size) => write!(f, "{size}|1"),
        }
    }
}

impl Tensor<'_> {
    /// The error that something else was expected here.
    pub fn error(&self, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Tensor { tensor: self.name.clone(), expected: expected.into(), got: got.into() }
    }

    /// Checks the shape; `axes` names it as the documentation does, `[B, Hq, Nq, dk]` for example.
    pub fn shape<const N: usize>(&self, axes: &str, sizes: [Size; N]) -> Result<[u32; N]> {
        // A size beyond 32 bits leaves no shape, not one of fewer axes.
        let shape: Option<Vec<u32>> = self.shape.iter().map(|&n| u32::try_from(n).ok()).collect();
        match shape.map(<[u32; N]>::try_from) {
            Some(Ok(shape)) if sizes.iter().zip(shape).all(|(size, n)| size.allows(n)) => Ok(shape),
            _ => {
                let sizes = sizes.map(|size| size.to_string()).join(", ");
                let expected = format!("shape {axes} = [{sizes}]");
                Err(self.error(expected, format!("shape {:?}", self.shape)).into())
            }
        }
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Bits of an element.
    pub fn bits(&self) -> usize {
        self.dtype.bitsize()
    }

    /// The element type of a tensor of floating-point numbers.
    pub fn dtype(&self) -> Result<DType> {
        match self.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            _ => Err(self.wrong_dtype("F32, F16 or BF16")),
        }
    }

    /// The numbers of a tensor of floating-point numbers.
    pub fn floats(&self) -> Result<Vec<f32>> {
        Ok(self.dtype()?.decode(self.bytes))
    }

    /// The bits of a tensor of booleans or bytes.
    pub fn bools(&self) -> Result<Vec<bool>> {
        match self.dtype {
            Dtype::BOOL | Dtype::U8 => Ok(self.bytes.iter().map(|&byte| byte != 0).collect()),
            _ => Err(self.wrong_dtype("BOOL or U8")),
        }
    }

    /// The numbers of a tensor of integers.
    pub fn integers(&self) -> Result<Vec<i128>> {
        macro_rules! decode {
            ($integer:ty) => {
                // The chunks have the length of the type.
                self.bytes
                    .chunks_exact(size_of::<$integer>())
                    .map(|chunk| {
                        let mut bytes = [0; size_of::<$integer>()];
                        bytes.copy_from_slice(chunk);
                        <$integer>::from_le_bytes(bytes).into()
                    })
                    .collect()
            };
        }
        Ok(match self.dtype {
            Dtype::BOOL | Dtype::U8 => decode!(u8),
            Dtype::U32 => decode!(u32),
            Dtype::I32 => decode!(i32),
            Dtype::U64 => decode!(u64),
            Dtype::I64 => decode!(i64),
            _ => return Err(self.wrong_dtype("U32, I32 or I64")),
        })
    }

    /// The numbers of a tensor of integers as 32-bit words.
    pub fn words(&self, range: RangeInclusive<i128>) -> Result<Vec<u32>> {
        let word = |(index, number): (usize, i128)| {
            if range.contains(&number) {
                return Ok(number as u32);
            }
            let expected = format!("numbers from {} to {}", range.start(), range.end());
            Err(self.error(expected, format!("{number} at index {index}")).into())
        };
        self.integers()?.into_iter().enumerate().map(word).collect()
    }

    fn wrong_dtype(&self, expected: &str) -> anyhow::Error {
        self.error(format!("dtype {expected}"), self.dtype.to_string()).into()
    }
}
