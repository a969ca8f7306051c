//! The output file: all of it or nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use wgpu_attention::DType;

use crate::bad_input;

/// An output file that can be written and is not there yet.
pub struct OutputFile {
    path: PathBuf,
    /// What is written first, beside the file whose name it then takes; `None` where `path` is no
    /// regular file (`/dev/null`) and is written itself.
    partial: Option<PathBuf>,
}

/// A tensor to be written.
pub struct Named<'a> {
    pub name: &'static str,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub values: &'a [f32],
}

impl OutputFile {
    /// Makes sure that `path` can be written, and is not `input`.
    pub fn create(path: &Path, input: &Path) -> Result<Self> {
        let refused = |error: std::io::Error| {
            bad_input(format!("cannot write --output `{}`: {error}", path.display()))
        };
        // Links are followed, so that the file they lead to is replaced and not the link.
        let path = match fs::canonicalize(path) {
            Ok(existing) => {
                if fs::canonicalize(input).is_ok_and(|input| input == existing) {
                    return Err(bad_input(format!(
                        "--output: expected another file than the input, got `{}` for both",
                        path.display()
                    )));
                }
                fs::OpenOptions::new().write(true).open(&existing).map_err(refused)?;
                existing
            }
            Err(_) => path.to_owned(),
        };
        if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            return Ok(Self { path, partial: None });
        }
        let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
        name.push(format!(".{}.partial", std::process::id()));
        let partial = path.with_file_name(name);
        fs::File::create_new(&partial).map_err(refused)?;
        fs::remove_file(&partial).map_err(refused)?;
        Ok(Self { path, partial: Some(partial) })
    }

    /// Writes the file: all of it or nothing.
    pub fn write(&self, tensors: &[Named<'_>]) -> Result<()> {
        let encoded: Vec<_> =
            tensors.iter().map(|tensor| tensor.dtype.encode(tensor.values)).collect();
        let views = tensors.iter().zip(&encoded).map(|(tensor, bytes)| {
            let dtype = match tensor.dtype {
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
            };
            Ok((tensor.name, TensorView::new(dtype, tensor.shape.clone(), bytes)?))
        });
        let bytes = serialize(views.collect::<Result<Vec<_>>>()?, None)?;
        let written = match &self.partial {
            None => fs::write(&self.path, bytes),
            Some(partial) => fs::write(partial, bytes)
                .and_then(|()| fs::rename(partial, &self.path))
                // The error to tell is the first one.
                .inspect_err(|_| drop(fs::remove_file(partial))),
        };
        written.with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}
