//! Streams, events, and what is captured.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::graph::Graph;
use super::state::{in_context, Driver};
use super::work::{HostFunction, HostPointer, Work};
use super::{code, entry_points, put, Answer};
use crate::device::nanoseconds;

/// A capture that is under way.
pub struct Capture {
    work: Mutex<Vec<Work>>,
    /// The stream in which it was begun.
    origin: u64,
    /// Whether a forbidden call spoilt it.
    spoilt: AtomicBool,
    /// Other streams whose work the origin has not waited for.
    apart: Mutex<HashSet<u64>>,
}

/// A stream.
#[derive(Default)]
pub struct Stream {
    capture: Mutex<Option<Arc<Capture>>>,
}

/// An event.
#[derive(Default)]
pub struct Event {
    /// When it was last recorded, in nanoseconds; 0 for never.
    at: AtomicU64,
    timed: bool,
    /// The capture and the stream in which it was recorded.
    capture: Mutex<Option<(Arc<Capture>, u64)>>,
}

thread_local! {
    /// Captures that this thread began, except relaxed ones.
    static MINE: RefCell<Vec<Arc<Capture>>> = const { RefCell::new(Vec::new()) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Stream {
    fn capture(&self) -> Option<Arc<Capture>> {
        lock(&self.capture).clone()
    }
}

impl Driver {
    /// Does the work, or notes it if the stream is being captured.
    pub fn submit(&self, handle: u64, work: Work) -> Answer {
        match self.stream(handle)?.capture() {
            None => self.run(&work),
            Some(capture) => {
                if handle != capture.origin {
                    lock(&capture.apart).insert(handle);
                }
                lock(&capture.work).push(work);
                Ok(())
            }
        }
    }

    /// Fails if this thread captures: the call would have to wait for the device.
    pub fn forbid_while_capturing(&self, call: &str) -> Answer {
        let captures = MINE.with_borrow(|mine| mine.clone());
        if captures.is_empty() {
            return Ok(());
        }
        captures.iter().for_each(|c| c.spoilt.store(true, Ordering::Relaxed));
        self.refuse(
            code::CAPTURE_UNSUPPORTED,
            format!("{call} while this thread captures a stream"),
        )
    }

    /// Fails if the stream is being captured.
    pub fn forbid_in_capture(&self, handle: u64, call: &str) -> Answer {
        match self.stream(handle)?.capture() {
            None => Ok(()),
            Some(capture) => {
                capture.spoilt.store(true, Ordering::Relaxed);
                self.refuse(
                    code::CAPTURE_UNSUPPORTED,
                    format!("{call} in a stream that is being captured"),
                )
            }
        }
    }

    fn begin_capture(&self, handle: u64, mode: c_uint) -> Answer {
        if handle <= 2 {
            return self.refuse(code::CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
        }
        let stream = self.streams.get(handle)?;
        let mut slot = lock(&stream.capture);
        if slot.is_some() {
            drop(slot);
            return self.refuse(code::INVALID_VALUE, "the stream is being captured already");
        }
        let capture = Arc::new(Capture {
            work: Mutex::default(),
            origin: handle,
            spoilt: AtomicBool::new(false),
            apart: Mutex::default(),
        });
        // Mode 2 is relaxed: anything may be called.
        if mode != 2 {
            MINE.with_borrow_mut(|mine| mine.push(capture.clone()));
        }
        *slot = Some(capture);
        Ok(())
    }

    fn end_capture(&self, handle: u64, graph: *mut u64) -> Answer {
        let stream = self.streams.get(handle)?;
        let Some(capture) = stream.capture().filter(|c| c.origin == handle) else {
            return self
                .refuse(code::CAPTURE_UNMATCHED, "the stream is not the origin of a capture");
        };
        MINE.with_borrow_mut(|mine| mine.retain(|c| !Arc::ptr_eq(c, &capture)));
        // All streams of the capture are free again.
        self.streams.drop_if(|s| {
            let mut slot = lock(&s.capture);
            if slot.as_ref().is_some_and(|c| Arc::ptr_eq(c, &capture)) {
                *slot = None;
            }
            false
        });
        if capture.spoilt.load(Ordering::Relaxed) {
            return self.refuse(
                code::CAPTURE_INVALIDATED,
                "a call that may not be captured spoilt the capture",
            );
        }
        if !lock(&capture.apart).is_empty() {
            return self.refuse(
                code::CAPTURE_UNJOINED,
                "work of another stream was captured and the origin does not wait for it",
            );
        }
        let work = std::mem::take(&mut *lock(&capture.work));
        // SAFETY: the caller's pointer, as the driver API demands.
        unsafe { put(graph, self.graphs.add(Arc::new(Graph { work }))) }
    }

    fn record(&self, event: u64, handle: u64) -> Answer {
        let event = self.events.get(event)?;
        let capture = self.stream(handle)?.capture();
        *lock(&event.capture) = capture.map(|c| (c, handle));
        event.at.store(nanoseconds().max(1), Ordering::Relaxed);
        Ok(())
    }

    /// In a capture, waiting for another stream's event joins that stream.
    fn wait_event(&self, handle: u64, event: u64) -> Answer {
        let event = self.events.get(event)?;
        let stream = self.stream(handle)?;
        let Some((capture, from)) = lock(&event.capture).clone() else {
            return match stream.capture() {
                None => Ok(()),
                Some(_) if event.at.load(Ordering::Relaxed) == 0 => Ok(()),
                Some(capture) => {
                    capture.spoilt.store(true, Ordering::Relaxed);
                    self.refuse(
                        905,
                        "a captured stream waits for an event from outside the capture",
                    )
                }
            };
        };
        match stream.capture() {
            Some(mine) if Arc::ptr_eq(&mine, &capture) => {
                lock(&capture.apart).remove(&from);
                if handle != capture.origin && from != capture.origin {
                    lock(&capture.apart).insert(handle);
                }
            }
            Some(_) => return self.refuse(902, "two captures would be merged"),
            None => {
                lock(&capture.apart).insert(handle);
                *lock(&stream.capture) = Some(capture);
            }
        }
        Ok(())
    }

    fn event_done(&self, handle: u64) -> Result<Arc<Event>, i32> {
        let event = self.events.get(handle)?;
        if lock(&event.capture).is_some() {
            return self.refuse(code::CAPTURED_EVENT, "the event was recorded in a capture");
        }
        Ok(event)
    }

    fn elapsed(&self, from: u64, to: u64) -> Result<f32, i32> {
        let (from, to) = (self.event_done(from)?, self.event_done(to)?);
        let times = (from.at.load(Ordering::Relaxed), to.at.load(Ordering::Relaxed));
        if times.0 == 0 || times.1 == 0 || !from.timed || !to.timed {
            return self
                .refuse(code::INVALID_HANDLE, "an event was not recorded, or does not time");
        }
        Ok((times.1 as f64 - times.0 as f64) as f32 / 1e6)
    }
}

entry_points! {
    /// Makes a stream.
    fn cuStreamCreate(stream: *mut u64, _flags: c_uint) {
        // SAFETY: the caller's pointer, as the driver API demands; so throughout.
        unsafe { put(stream, in_context()?.streams.add(Arc::default())) }
    }

    /// Makes a stream; priorities do not matter.
    fn cuStreamCreateWithPriority(stream: *mut u64, _flags: c_uint, _priority: c_int) {
        // SAFETY: as above.
        unsafe { put(stream, in_context()?.streams.add(Arc::default())) }
    }

    /// Ends a stream.
    fn cuStreamDestroy_v2(stream: u64) {
        in_context()?.streams.remove(stream).map(|_| ())
    }

    /// Waits for a stream; its work is done already.
    fn cuStreamSynchronize(stream: u64) {
        let driver = in_context()?;
        driver.forbid_in_capture(stream, "cuStreamSynchronize")?;
        driver.memory.settle();
        Ok(())
    }

    /// Whether a stream's work is done: always.
    fn cuStreamQuery(stream: u64) {
        in_context()?.forbid_in_capture(stream, "cuStreamQuery")
    }

    /// The stream's later work waits for an event.
    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) {
        in_context()?.wait_event(stream, event)
    }

    /// Begins to note work instead of doing it.
    fn cuStreamBeginCapture_v2(stream: u64, mode: c_uint) {
        in_context()?.begin_capture(stream, mode)
    }

    /// Makes a graph of the work noted.
    fn cuStreamEndCapture(stream: u64, graph: *mut u64) {
        in_context()?.end_capture(stream, graph)
    }

    /// Whether a stream is being captured: 0 no, 1 yes, 2 in vain.
    fn cuStreamIsCapturing(stream: u64, status: *mut c_uint) {
        let state = match in_context()?.stream(stream)?.capture() {
            None => 0,
            Some(c) if c.spoilt.load(Ordering::Relaxed) => 2,
            Some(_) => 1,
        };
        // SAFETY: as above.
        unsafe { put(status, state) }
    }

    /// Calls a function of the host in the order of a stream.
    fn cuLaunchHostFunc(stream: u64, function: Option<HostFunction>, data: *mut c_void) {
        let function = function.ok_or(code::INVALID_VALUE)?;
        in_context()?.submit(stream, Work::Host(function, HostPointer(data.cast())))
    }

    /// Ties managed memory to a stream; there is none.
    fn cuStreamAttachMemAsync(_stream: u64, _address: u64, _bytes: usize, _flags: c_uint) {
        in_context()?.refuse(code::NOT_SUPPORTED, "managed memory is not supported")
    }

    /// Makes an event; flag 2 is for events that do not time.
    fn cuEventCreate(event: *mut u64, flags: c_uint) {
        let made = Event { timed: flags & 2 == 0, ..Event::default() };
        // SAFETY: as above.
        unsafe { put(event, in_context()?.events.add(Arc::new(made))) }
    }

    /// Ends an event.
    fn cuEventDestroy_v2(event: u64) {
        in_context()?.events.remove(event).map(|_| ())
    }

    /// Notes that the stream has come this far.
    fn cuEventRecord(event: u64, stream: u64) {
        in_context()?.record(event, stream)
    }

    /// Whether an event has happened: always.
    fn cuEventQuery(event: u64) {
        in_context()?.event_done(event).map(|_| ())
    }

    /// Waits for an event; it has happened.
    fn cuEventSynchronize(event: u64) {
        let driver = in_context()?;
        driver.event_done(event)?;
        driver.memory.settle();
        Ok(())
    }

    /// Milliseconds between two events.
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, from: u64, to: u64) {
        // SAFETY: as above.
        unsafe { put(milliseconds, in_context()?.elapsed(from, to)?) }
    }

    /// Milliseconds between two events.
    fn cuEventElapsedTime(milliseconds: *mut f32, from: u64, to: u64) {
        // SAFETY: as above.
        unsafe { put(milliseconds, in_context()?.elapsed(from, to)?) }
    }
}
