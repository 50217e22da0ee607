//! Every kernel compiles for every architecture within its budget of registers
//! and memory, `kernels/resources.txt`. `LLAMA4RS_WRITE_RESOURCES=1` writes the file anew.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use llama4rs_cuda::nvrtc::{Architecture, Nvrtc};
use llama4rs_cuda::resources::parse;
use llama4rs_cuda::{all_kernels, KernelSource};
use support::nvrtc_folders;

const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_90a", "sm_100", "sm_120"];

/// `file kernel CONSTANT=value,...`: registers, stack, spills and shared bytes per architecture.
type Report = BTreeMap<String, Vec<[u32; 4]>>;

fn report_of(nvrtc: &Nvrtc, source: &KernelSource) -> Report {
    let mut report = Report::new();
    for constants in source.examples {
        let names: Vec<_> =
            constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for architecture in ARCHITECTURES {
            let architecture = Architecture::Binary(architecture.to_owned());
            let compiled = source.compile(nvrtc, &architecture, constants).unwrap();
            assert!(!compiled.log.contains("warning"), "{}: {}", source.name, compiled.log);
            for found in parse(&compiled.log) {
                let key = format!("{} {} {}", source.name, found.kernel, names.join(","));
                let numbers = [found.registers, found.stack, found.spills, found.shared];
                report.entry(key.trim_end().to_owned()).or_default().push(numbers);
            }
        }
    }
    report
}

#[test]
fn kernels_stay_within_their_budget() {
    let nvrtc = match Nvrtc::load(&nvrtc_folders()) {
        Ok(nvrtc) => nvrtc,
        Err(error) => return println!("skipped: {error}"),
    };
    let report: Report = std::thread::scope(|scope| {
        let compile = |part: &'static [KernelSource]| {
            let nvrtc = &nvrtc;
            scope.spawn(move || part.iter().flat_map(|source| report_of(nvrtc, source)).collect())
        };
        let half = all_kernels().len().div_ceil(2);
        let parts: Vec<_> = all_kernels().chunks(half).map(compile).collect();
        parts
            .into_iter()
            .flat_map(|part: std::thread::ScopedJoinHandle<Report>| part.join().unwrap())
            .collect()
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/resources.txt");
    if std::env::var_os("LLAMA4RS_WRITE_RESOURCES").is_some() {
        std::fs::write(&path, written(&report)).unwrap();
    }
    let budget = read(&std::fs::read_to_string(&path).unwrap());
    let kernels = |report: &Report| report.keys().cloned().collect::<Vec<_>>();
    assert_eq!(kernels(&report), kernels(&budget), "kernels and {}", path.display());
    for (kernel, found) in &report {
        for ((architecture, found), allowed) in ARCHITECTURES.iter().zip(found).zip(&budget[kernel])
        {
            let fits = found.iter().zip(allowed).all(|(found, allowed)| found <= allowed);
            assert!(fits, "{kernel} on {architecture}: {found:?} is more than {allowed:?}");
        }
    }
}

/// Registers are given out in eights: a budget is the next multiple.
fn written(report: &Report) -> String {
    let mut text = String::from(
        "# The most that each kernel may need: registers, stack, spills, shared bytes,\n# on",
    );
    for architecture in ARCHITECTURES {
        text += &format!(" | {architecture}");
    }
    for (kernel, numbers) in report {
        text += &format!("\n{kernel}");
        for [registers, rest @ ..] in numbers {
            let rest = rest.map(|number| number.to_string()).join(" ");
            text += &format!(" | {} {rest}", registers.next_multiple_of(8));
        }
    }
    text + "\n"
}

fn read(text: &str) -> Report {
    let mut budget = Report::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line.split(" | ");
        let kernel = parts.next().unwrap().to_owned();
        let numbers = parts.map(|part| {
            let numbers: Vec<u32> = part.split(' ').map(|n| n.parse().unwrap()).collect();
            numbers.try_into().unwrap()
        });
        budget.insert(kernel, numbers.collect());
    }
    budget
}
