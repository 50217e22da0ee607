//! Floor 3: many requests, one model.
//!
//! The life of a request: [`Engine::submit`] checks it and puts it in the queue.
//! Whoever calls [`Engine::next`] for any request *drives*: it takes the one
//! lock of the model, and computes a step for all requests together (decoding
//! ones first, then parts of prompts, up to a budget of tokens). Results go to
//! each request's mailbox, where its owner finds them. There is no background
//! thread: nothing runs when nobody waits.
//!
//! A request's tokens do not depend on the company that it keeps: every backend
//! operation is batch-invariant, and random draws depend on the request's seed
//! and the token's number only.

mod admission;
mod engine;
mod error;
mod observer;
mod request;
mod sampler;
mod scheduler;
mod sequence;
mod turn;

pub use engine::{Engine, Settings};
pub use error::{Error, Result};
pub use request::{
    Event, ExpertUsage, FinishReason, ImageFeatures, Request, RequestOptions, Timings, Usage,
};
pub use sampler::{Choice, Sampler, SamplingOptions};
