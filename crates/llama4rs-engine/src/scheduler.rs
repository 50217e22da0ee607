//! Who runs in the next step, and with how many tokens.

use std::collections::VecDeque;

use llama4rs_kv_cache::KvCache;
use llama4rs_tensor::Backend;

use crate::admission::Admission;
use crate::sequence::Sequence;
use crate::{Error, FinishReason, Result};

/// Limits of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Rows of a step that prompts may fill.
    pub step_tokens: usize,
    /// Sequences that run at the same time.
    pub max_sequences: usize,
}

/// What a running sequence can compute now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// One more token.
    Token,
    /// So many tokens of its prompt.
    Prompt(usize),
}

/// Waiting and running sequences, both in order of arrival.
#[derive(Default)]
pub(crate) struct Scheduler {
    pub waiting: VecDeque<Sequence>,
    pub running: Vec<Sequence>,
    /// The first in the queue found no room, and nothing was given back since.
    blocked: bool,
}

impl Scheduler {
    /// Lets waiting sequences run, in order of arrival, as long as there is room for the
    /// next one beside those that run. Nobody overtakes the one that waits. An interruption
    /// leaves everybody where they were.
    pub fn admit<B: Backend>(
        &mut self,
        limits: Limits,
        admission: &Admission,
        backend: &B,
        cache: &mut KvCache<B>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<()> {
        if self.blocked || self.waiting.is_empty() {
            return Ok(());
        }
        let mut room = admission.room(cache, &self.running);
        while self.running.len() < limits.max_sequences {
            let Some(mut sequence) = self.waiting.pop_front() else { return Ok(()) };
            if let Err(error) = sequence.attach(backend, cache, interrupted) {
                self.waiting.push_front(sequence);
                return Err(error);
            }
            if room.add(cache, &sequence) {
                self.running.push(sequence);
                continue;
            }
            sequence.detach(cache);
            if self.running.is_empty() {
                // The budget became smaller after the request was taken.
                sequence.fail(Error::OutOfMemory("kv_memory was lowered".to_owned()));
            }
            self.waiting.push_front(sequence);
            self.blocked = true;
            return Ok(());
        }
        Ok(())
    }

    /// The rows of `running[i]` in the next step. A sequence whose first rows these are
    /// begins with what the cache has learnt of its prompt since it was admitted.
    pub fn plan<B: Backend>(
        &mut self,
        limits: Limits,
        backend: &B,
        cache: &mut KvCache<B>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<usize>> {
        loop {
            let work: Vec<Work> = self.running.iter().map(Sequence::work).collect();
            let rows = share(limits.step_tokens, &work);
            let mut begun = false;
            for (sequence, &rows) in self.running.iter_mut().zip(&rows) {
                begun |= rows > 0 && sequence.begin(backend, cache, interrupted)?;
            }
            if !begun {
                return Ok(rows);
            }
            self.blocked = false;
        }
    }

    /// Ends the sequences whose owners cancelled them, and removes all that have ended:
    /// their last event comes after their pages are stored.
    pub fn reap<B: Backend>(&mut self, backend: &B, cache: &mut KvCache<B>) {
        for sequence in self.waiting.iter_mut().chain(&mut self.running) {
            if let Some(reason) = sequence.cancelled() {
                sequence.finish(FinishReason::Cancelled(reason), None);
            }
        }
        let Self { waiting, running, blocked } = self;
        for mut sequence in running.extract_if(.., |sequence| sequence.has_ended()) {
            sequence.persist(backend, cache);
            sequence.close();
            cache.release(sequence.kv);
            *blocked = false;
        }
        // Waiting sequences own no pages.
        let before = waiting.len();
        waiting.retain_mut(|sequence| {
            sequence.close();
            !sequence.has_ended()
        });
        *blocked &= waiting.len() == before;
    }
}

/// Rows of a step for sequences in order of arrival.
///
/// Those that decode get one each, always. Prompts fill the rest of `step_tokens`, at
/// least a quarter of it: one half in order of arrival, so that the oldest makes
/// progress whoever comes after it; then those that need least, so that a short prompt
/// does not wait for the end of a long one.
fn share(step_tokens: usize, work: &[Work]) -> Vec<usize> {
    let mut rows: Vec<usize> =
        work.iter().map(|work| if *work == Work::Token { 1 } else { 0 }).collect();
    let decoding = rows.iter().sum();
    let mut budget = step_tokens.saturating_sub(decoding).max(step_tokens.div_ceil(4));

    let left = |index: usize, rows: &[usize]| match work[index] {
        Work::Token => 0,
        Work::Prompt(tokens) => tokens - rows[index],
    };
    let arrival: Vec<usize> = (0..work.len()).filter(|&i| left(i, &rows) > 0).collect();
    let mut shortest = arrival.clone();
    shortest.sort_by_key(|&index| left(index, &rows));

    let first_half = budget.div_ceil(2);
    budget -= first_half;
    for (mut part, order) in [(first_half, &arrival), (budget, &shortest)] {
        for &index in order {
            let more = left(index, &rows).min(part);
            rows[index] += more;
            part -= more;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn work() -> impl Strategy<Value = Vec<Work>> {
        let one = prop_oneof![Just(Work::Token), (1usize..900).prop_map(Work::Prompt)];
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn rows_are_shared_fairly(step_tokens in 1usize..600, work in work()) {
            let rows = share(step_tokens, &work);
            let decoding = work.iter().filter(|work| **work == Work::Token).count();
            let budget = step_tokens.saturating_sub(decoding).max(step_tokens.div_ceil(4));
            let (mut given, mut wanted, mut oldest) = (0, 0, None);
            for (&work, &rows) in work.iter().zip(&rows) {
                match work {
                    Work::Token => prop_assert_eq!(rows, 1),
                    Work::Prompt(tokens) => {
                        prop_assert!(rows <= tokens);
                        oldest.get_or_insert((tokens, rows));
                        given += rows;
                        wanted += tokens;
                    }
                }
            }
            prop_assert_eq!(given, wanted.min(budget), "no row is wasted");
            if let Some((tokens, rows)) = oldest {
                prop_assert!(rows >= tokens.min(budget.div_ceil(2)));
            }
        }
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one() {
        let work = [Work::Prompt(100_000), Work::Token, Work::Prompt(30), Work::Prompt(200)];
        assert_eq!(share(101, &work), [50, 1, 30, 20]);
        assert_eq!(share(2, &[Work::Token; 5]), [1; 5]);
        assert_eq!(share(4, &[Work::Token, Work::Prompt(9), Work::Token]), [1, 2, 1]);
    }
}
