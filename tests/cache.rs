//! What is kept between runs of a program: a folder that helps or is ignored, and never harms.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Case, context, variants};
use wgpu_attention::{Attention, Context, DType, Mask, Shape, Variant, wgpu};

fn attention() -> Attention {
    Attention::new(Shape::new(1, 2, 40, 16), DType::F32).with_mask(Mask::causal())
}

/// A context on the same device that has compiled nothing, with a folder.
fn fresh(context: &Context, folder: &Path) -> Context {
    context.with_checked_shaders(false).with_cache(folder)
}

/// Plans and runs every kernel on a context with the folder, and looks at the result.
fn works(context: &Context, folder: &Path) {
    works_with(context, folder, &variants(context, &attention()));
}

/// Does the same with some kernels.
fn works_with(context: &Context, folder: &Path, variants: &[Variant]) {
    let context = fresh(context, folder);
    let case = Case::new(attention(), 1);
    for &variant in variants {
        case.judge(&case.run(&context, variant).expect("runs"), variant.label());
    }
}

/// The file with compiled pipelines, on devices that can keep them.
fn pipelines(context: &Context, folder: &Path) -> Option<PathBuf> {
    let keeps = context.device().features().contains(wgpu::Features::PIPELINE_CACHE);
    let name = wgpu::util::pipeline_cache_key(&context.device().adapter_info());
    name.filter(|_| keeps).map(|name| folder.join(name))
}

fn sealed(data: &[u8]) -> Vec<u8> {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let checksum = data.iter().fold(0xcbf2_9ce4_8422_2325, step);
    [&checksum.to_le_bytes(), data].concat()
}

#[test]
fn pipelines_are_kept() {
    let Some(context) = context() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("made when needed");
    let empty = fresh(context, &folder);
    assert!(!folder.exists(), "made before there is anything to keep");
    drop(empty);
    works(context, &folder);
    let Some(file) = pipelines(context, &folder) else { return };
    let kept = fs::read(&file).expect("a file of pipelines");
    let written = fs::metadata(&file).and_then(|file| file.modified()).expect("a time");
    // The driver takes its data back, and has nothing to add to it.
    works(context, &folder);
    assert_eq!(fs::read(&file).expect("still there"), kept);
    let unchanged = fs::metadata(&file).and_then(|file| file.modified()).expect("a time");
    assert_eq!(unchanged, written, "written again");
    let others = fs::read_dir(&folder).expect("a folder").count();
    assert_eq!(others, 1, "something is left behind");
}

#[test]
fn bad_files_are_replaced() {
    let Some(context) = context() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    // One kernel: a file is good or bad as a whole, and drivers that keep nothing compile for each.
    let works = |folder: &Path| works_with(context, folder, &[Variant::Tiled]);
    works(folder.path());
    let Some(file) = pipelines(context, folder.path()) else { return };
    let good = fs::read(&file).expect("a file of pipelines");
    let data = &good[8..];
    let changed = |place: usize, by: u8| {
        let mut data = data.to_vec();
        data[place] ^= by;
        sealed(&data)
    };
    let broken = [
        Vec::new(),
        b"not pipelines".to_vec(),
        good[..good.len() / 2].to_vec(),
        [&good[..], &[0; 100]].concat(),
    ];
    for contents in broken {
        fs::write(&file, &contents).expect("written");
        works(folder.path());
        assert_eq!(fs::read(&file).expect("replaced").len(), good.len());
    }
    let foreign = [
        sealed(&[]),
        sealed(&data[..40]),
        // wgpu's header: its mark, its version, the device, the driver, the length.
        changed(0, 1),
        changed(8, 1),
        changed(21, 1),
        changed(32, 1),
        changed(48, 1),
    ];
    for contents in foreign {
        fs::write(&file, &contents).expect("written");
        works(folder.path());
    }
}

/// Where nothing can be kept everything still works.
#[test]
fn a_folder_that_cannot_be() {
    let Some(context) = context() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "in the way").expect("written");
    works(context, &file.join("folder"));
    assert_eq!(fs::read(&file).expect("untouched"), b"in the way");
}

#[test]
fn many_use_one_folder() {
    let Some(context) = context() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        for dim in [16, 24, 32, 40] {
            let folder = folder.path();
            scope.spawn(move || {
                let context = fresh(context, folder);
                let attention = Attention::new(Shape::new(1, 2, 40, dim), DType::F32);
                let case = Case::new(attention, 2);
                case.judge(&case.run(&context, Variant::Tiled).expect("runs"), "beside others");
            });
        }
    });
    works(context, folder.path());
}
