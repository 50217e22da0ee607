//! Every kernel compiles for every architecture within its budget of registers
//! and memory, `kernels/resources.txt`. `LLAMA4RS_WRITE_RESOURCES=1` writes the file anew.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama4rs_cuda::nvrtc::{Architecture, Nvrtc};
use llama4rs_cuda::resources::parse;
use llama4rs_cuda::{all_kernels, KernelSource};
use support::nvrtc_folders;

const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_90a", "sm_100", "sm_120"];

/// Another version gives out registers in another way.
const COMPILER: (u32, u32) = (13, 0);

/// `file kernel CONSTANT=value,...`: registers, stack, spills and shared bytes per architecture.
type Report = BTreeMap<String, Vec<[u32; 4]>>;

/// One compilation.
type Job<'a> = (&'a KernelSource, &'a [(&'a str, u32)], &'a str);

/// What the kernels of a job need, by name.
fn compile(nvrtc: &Nvrtc, (source, constants, architecture): Job<'_>) -> Vec<(String, [u32; 4])> {
    let names: Vec<_> = constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let architecture = Architecture::Binary(architecture.to_owned());
    let compiled = source.compile(nvrtc, &architecture, constants).unwrap();
    // C7510 and its kin: products of warpgroups that wait for each other.
    for word in ["warning", "Potential Performance Loss"] {
        assert!(!compiled.log.contains(word), "{}: {}", source.name, compiled.log);
    }
    let kernels = parse(&compiled.log).into_iter().map(|found| {
        let key = format!("{} {} {}", source.name, found.kernel, names.join(","));
        let numbers = [found.registers, found.stack, found.spills, found.shared];
        (key.trim_end().to_owned(), numbers)
    });
    kernels.collect()
}

/// Compiles everything, on all cores.
fn full_report(nvrtc: &Nvrtc) -> Report {
    let examples = all_kernels()
        .iter()
        .flat_map(|&source| source.examples.iter().map(move |constants| (source, *constants)));
    let jobs: Vec<Job<'_>> = examples
        .flat_map(|(source, constants)| ARCHITECTURES.map(|name| (source, constants, name)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let place = ARCHITECTURES.iter().position(|name| name == &job.2).unwrap();
            done.extend(
                compile(nvrtc, *job).into_iter().map(|(key, numbers)| (key, place, numbers)),
            );
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let mut report = Report::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for (key, place, numbers) in workers.into_iter().flat_map(|worker| worker.join().unwrap()) {
            report.entry(key).or_insert_with(|| vec![[0; 4]; ARCHITECTURES.len()])[place] = numbers;
        }
    });
    report
}

#[test]
fn kernels_stay_within_their_budget() {
    let nvrtc = match Nvrtc::load(&nvrtc_folders()) {
        Ok(nvrtc) => nvrtc,
        Err(error) => return println!("skipped: {error}"),
    };
    let report = full_report(&nvrtc);
    if nvrtc.version() != COMPILER {
        return println!("everything compiles; the budget is that of NVRTC {COMPILER:?}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/resources.txt");
    if std::env::var_os("LLAMA4RS_WRITE_RESOURCES").is_some() {
        std::fs::write(&path, written(&report)).unwrap();
    }
    let budget = read(&std::fs::read_to_string(&path).unwrap());
    let only_in = |one: &Report, other: &Report| -> Vec<String> {
        one.keys().filter(|kernel| !other.contains_key(*kernel)).cloned().collect()
    };
    let (new, gone) = (only_in(&report, &budget), only_in(&budget, &report));
    assert!(new.is_empty() && gone.is_empty(), "new: {new:?}, gone: {gone:?}: {}", path.display());
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
