//! `bindgen INPUT.wasm FOLDER`: writes the JavaScript and the types that go with a wasm module, for pages
//! that load it without a bundler.

use std::path::Path;
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, folder] = &arguments[..] else {
        eprintln!("usage: bindgen INPUT.wasm FOLDER");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    // The module's own address is the default, so that `init()` needs no argument.
    bindgen.input_path(input).out_name("wgpu_attention").omit_default_module_path(false);
    let generated = bindgen.typescript(true).web(true).and_then(|bindgen| bindgen.generate(folder));
    let finished = generated
        .map_err(|error| format!("{error:?}"))
        .and_then(|()| explain_missing_init(&Path::new(folder).join("wgpu_attention.js")));
    match finished {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bindgen: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What stands for the module's exports until `init()` sets them: calls say what is missing, and
/// those of `Context`, which give promises, reject.
const BEFORE_INIT: &str = r#"const beforeInit = new Proxy({}, {
    get(_, name) {
        const error = new Error("wgpu-attention: expected `await init()` (the module's default export) before any other call, got a call without it");
        error.name = "InitError";
        if (String(name).startsWith("context_")) return () => Promise.reject(error);
        throw error;
    },
});
let wasmModule, wasmInstance, wasm = beforeInit;
"#;

/// Replaces the `undefined` that the generated script begins with by [`BEFORE_INIT`].
fn explain_missing_init(script: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", script.display());
    let mut text = std::fs::read_to_string(script).map_err(failed)?;
    for (from, to, count) in [
        ("let wasmModule, wasmInstance, wasm;\n", BEFORE_INIT, 1),
        ("if (wasm !== undefined) return wasm;", "if (wasm !== beforeInit) return wasm;", 2),
    ] {
        let found = text.matches(from).count();
        if found != count {
            return Err(format!("{}: expected {count} × `{from}`, got {found}", script.display()));
        }
        text = text.replace(from, to);
    }
    std::fs::write(script, text).map_err(failed)
}
