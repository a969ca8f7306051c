//! The one error type: every variant is a sentence a user can act on.

/// Why a variant cannot run a configuration on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("variant {variant} cannot run this: {reason}")]
#[non_exhaustive]
pub struct Unsupported {
    /// The stem of the variant that was asked, `attention.tiled` for example.
    pub variant: &'static str,
    /// What the variant or the device lacks.
    pub reason: String,
}

impl Unsupported {
    /// A refusal by `variant` for `reason`.
    pub fn new(variant: &'static str, reason: impl Into<String>) -> Self {
        Self { variant, reason: reason.into() }
    }

    /// A refusal on a driver that ends loops after `limit` rounds.
    pub(crate) fn rounds(variant: &'static str, limit: u32) -> Self {
        let reason = format!(
            "its loops would make more rounds than the {limit} after which the driver ends them without a word (docs/platform.md)"
        );
        Self::new(variant, reason)
    }
}

/// Everything that can go wrong, as a sentence that names what was expected and what came.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor or array that does not fit the configuration.
    #[error("tensor `{tensor}`: expected {expected}, got {got}")]
    Tensor {
        /// The tensor's name, as in the documentation (`query`, `key`, `out`, ...).
        tensor: String,
        /// What the configuration asks for.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A configuration that has no meaning.
    #[error("configuration `{field}`: expected {expected}, got {got}")]
    Config {
        /// The field or option.
        field: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A mask expression that does not parse.
    #[error("mask expression `{expression}`, column {column}: expected {expected}, got {got}")]
    MaskSyntax {
        /// The text that was parsed.
        expression: String,
        /// Where it went wrong, counted in characters from 1.
        column: usize,
        /// What could have stood there.
        expected: String,
        /// What stood there.
        got: String,
    },
    /// An output that shares a buffer with an input: WebGPU refuses the two in one dispatch.
    #[error(
        "tensors `{output}` and `{other}` share one wgpu::Buffer: expected the output in a buffer of its own, got one buffer for both (WebGPU refuses to read and write one buffer in one dispatch, even at disjoint ranges)"
    )]
    SharedBuffer {
        /// The tensor that is written.
        output: String,
        /// The other tensor in the same buffer.
        other: String,
    },
    /// A limit of the device that the work cannot be split to satisfy.
    #[error("{what}: needs {needed}, but this device's {limit} is {allowed}")]
    Limit {
        /// What ran into the limit.
        what: String,
        /// The limit's name in WebGPU's words.
        limit: &'static str,
        /// How much was needed.
        needed: u64,
        /// How much the device allows.
        allowed: u64,
    },
    /// A variant that was forced, or all of them, cannot run the configuration here.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// No adapter answered, or none of the name that was asked for.
    #[error("no usable GPU adapter: {0}")]
    NoAdapter(String),
    /// The adapter refused to make a device.
    #[error("the adapter gave no device: {0}")]
    NoDevice(String),
    /// A shader of this library did not compile: a fault of ours or of the driver.
    #[error("shader {label} did not compile: {message}")]
    Shader {
        /// The kernel's label, `attention.tiled` for example.
        label: String,
        /// The compiler's message, its place given as file and line of `shaders/`.
        message: String,
    },
    /// The device ran out of memory.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// The device reported a validation error: a fault of ours.
    #[error("the device refused the work: {0}")]
    Validation(String),
    /// The device was lost or destroyed.
    #[error("the device was lost: {0}; make a new Context to go on")]
    DeviceLost(String),
}

impl Error {
    pub(crate) fn tensor(
        tensor: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Tensor { tensor: tensor.into(), expected: expected.into(), got: got.into() }
    }

    pub(crate) fn config(
        field: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Config { field: field.into(), expected: expected.into(), got: got.into() }
    }
}

impl From<wgpu::Error> for Error {
    fn from(error: wgpu::Error) -> Self {
        match error {
            wgpu::Error::OutOfMemory { source } => Self::OutOfMemory(source.to_string()),
            wgpu::Error::Validation { description, .. } => Self::Validation(description),
            wgpu::Error::Internal { description, .. } => Self::Validation(description),
        }
    }
}
