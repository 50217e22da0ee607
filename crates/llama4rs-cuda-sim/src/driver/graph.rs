//! Graphs: lists of captured work, done again in the order of their capture.

use std::ffi::c_ulonglong;
use std::sync::Arc;

use super::state::in_context;
use super::work::Work;
use super::{entry_points, put};

/// Captured work.
pub struct Graph {
    /// In the order of the calls.
    pub work: Vec<Work>,
}

entry_points! {
    /// Makes a graph ready to launch.
    fn cuGraphInstantiateWithFlags(executable: *mut u64, graph: u64, _flags: c_ulonglong) {
        let driver = in_context()?;
        let work = driver.graphs.get(graph)?.work.clone();
        // SAFETY: the caller's pointer, as the driver API demands; so throughout.
        unsafe { put(executable, driver.executables.add(Arc::new(Graph { work }))) }
    }

    /// Prepares a launch; nothing is needed.
    fn cuGraphUpload(executable: u64, _stream: u64) {
        in_context()?.executables.get(executable).map(|_| ())
    }

    /// Does the work of a graph.
    fn cuGraphLaunch(executable: u64, stream: u64) {
        let driver = in_context()?;
        let graph = driver.executables.get(executable)?;
        graph.work.iter().try_for_each(|work| driver.submit(stream, work.clone()))
    }

    /// Ends an executable graph.
    fn cuGraphExecDestroy(executable: u64) {
        in_context()?.executables.remove(executable).map(|_| ())
    }

    /// Ends a graph.
    fn cuGraphDestroy(graph: u64) {
        in_context()?.graphs.remove(graph).map(|_| ())
    }

    /// Number of nodes; the nodes themselves are not offered.
    fn cuGraphGetNodes(graph: u64, nodes: *mut u64, count: *mut usize) {
        let driver = in_context()?;
        let graph = driver.graphs.get(graph)?;
        if !nodes.is_null() {
            return driver.refuse(super::code::NOT_SUPPORTED, "only the number of nodes is offered");
        }
        // SAFETY: as above.
        unsafe { put(count, graph.work.len()) }
    }
}
