//! `bindgen INPUT.wasm FOLDER`: writes the JavaScript and the types that go with a wasm module, for pages
//! that load it without a bundler.

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
    match bindgen.typescript(true).web(true).and_then(|bindgen| bindgen.generate(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bindgen: {error:?}");
            ExitCode::FAILURE
        }
    }
}
