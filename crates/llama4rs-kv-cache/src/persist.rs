//! Full pages become files, and files their memory.

use std::borrow::Cow;
use std::collections::HashMap;

use llama4rs_tensor::{Backend, Bytes, Error, Result};

use crate::cache::KvCache;
use crate::layout::PoolKind;
use crate::prefix::TokenKey;
use crate::sequence::SequenceKv;
use crate::store::{self, extend_chain, Pages, Store, Text, SEGMENT_PAGES};
use crate::PAGE_TOKENS;

/// Most maps of files that the prefix tree keeps: a quarter of what Linux lets a process have.
const MAX_MAPS: u128 = 1 << 14;

/// Whether the last attempt to store pages was successful.
#[derive(Debug, Default)]
pub(crate) enum StoreState {
    #[default]
    Working,
    /// Why it was not, whether somebody was told, and whether the next is expected to be.
    Failing { why: String, told: bool, trusted: bool },
}

impl<B: Backend> KvCache<B> {
    /// Stores the full pages of a sequence whose tokens are `tokens`, so that they
    /// survive the process. Without `end` only when a whole segment more is full, and
    /// what later pages do not need is left out.
    ///
    /// On an error nothing is lost: the pages stay in memory, and what was stored before
    /// stays stored. [`take_store_warning`](Self::take_store_warning) tells why.
    pub fn persist(
        &mut self,
        backend: &B,
        sequence: &mut SequenceKv,
        tokens: &[TokenKey],
        end: bool,
    ) {
        let full = sequence.len.min(tokens.len()) / PAGE_TOKENS;
        let pages = if end { full } else { full / SEGMENT_PAGES * SEGMENT_PAGES };
        if pages == 0 || self.global.is_none() || (!end && pages <= sequence.persisted) {
            return;
        }
        let Some(mut store) = self.store.take() else { return };
        extend_chain(&mut sequence.chain, store.root(), tokens);
        let text = Text::new(&sequence.chain, tokens).first(pages);
        let before = std::mem::replace(&mut sequence.persisted, pages);
        let outcome = self.write(backend, &mut store, sequence, text, before, end);
        self.store = Some(store);
        self.note_outcome(outcome);
    }

    /// Takes note whether pages could be stored.
    pub(crate) fn note_outcome(&mut self, outcome: store::Result<()>) {
        match outcome {
            Ok(()) => self.store_state = StoreState::Working,
            Err(error) => {
                let told = match self.store_state {
                    StoreState::Failing { told, .. } => told,
                    StoreState::Working => false,
                };
                let why = error.to_string();
                self.store_state = StoreState::Failing { why, told, trusted: false };
            }
        }
    }

    /// Why pages cannot be stored, once when that begins.
    pub fn take_store_warning(&mut self) -> Option<String> {
        match &mut self.store_state {
            StoreState::Failing { why, told, .. } => {
                (!std::mem::replace(told, true)).then(|| why.clone())
            }
            StoreState::Working => None,
        }
    }

    /// Why pages that should be mapped stay in memory; `None`: they do not.
    pub fn store_problem(&self) -> Option<&str> {
        match &self.store_state {
            StoreState::Failing { why, .. } if self.layout.mapped => Some(why),
            _ => None,
        }
    }

    /// Counts on the store again, until the next attempt tells: for when nobody runs.
    pub fn trust_store(&mut self) {
        if let StoreState::Failing { trusted, .. } = &mut self.store_state {
            *trusted = true;
        }
    }

    fn write(
        &mut self,
        backend: &B,
        store: &mut Store,
        sequence: &SequenceKv,
        text: Text<'_>,
        before: usize,
        end: bool,
    ) -> store::Result<()> {
        let first = self.first_of_chunk(text.pages());
        let mut kinds = vec![(PoolKind::Global, 0)];
        if end && first < text.pages() {
            kinds.push((PoolKind::Chunked, first));
        }
        for &(kind, floor) in &kinds {
            self.write_pool(backend, store, sequence, kind, text, floor)?;
        }
        if let Some(chunk) = self.layout.chunk_pages().filter(|_| self.chunked.is_some()) {
            let resume = self.resume_pages(sequence).start;
            for start in (before / chunk * chunk..first).step_by(chunk) {
                if start != resume {
                    store.retire(PoolKind::Chunked, text.first(start + chunk), start);
                }
            }
        }
        Ok(())
    }

    /// Stores the pages of one pool from `floor` on, and lets files be their memory.
    pub(crate) fn write_pool(
        &mut self,
        backend: &B,
        store: &mut Store,
        sequence: &SequenceKv,
        kind: PoolKind,
        text: Text<'_>,
        floor: usize,
    ) -> store::Result<()> {
        store.write(kind, text, floor, &Held { backend, cache: self, sequence })?;
        if self.layout.mapped {
            self.map_pages(backend, store, sequence, kind, text, floor);
        }
        Ok(())
    }

    /// What pages cost in the prefix tree whose bytes are mapped, though they take no memory:
    /// the system limits the number of maps, and a file that was removed keeps its room on
    /// the disk as long as it is mapped. So the tree keeps no more than [`MAX_MAPS`] maps and no
    /// more bytes of files than there may be.
    pub(crate) fn map_costs(&self, bytes: &[Bytes]) -> Vec<usize> {
        let mut pages_of = HashMap::new();
        for map in bytes.iter().filter_map(map_of) {
            *pages_of.entry(map).or_insert(0) += 1;
        }
        let cost = |bytes: &Bytes| {
            let pages = map_of(bytes).and_then(|map| pages_of.get(&map)).map_or(1, |&pages| pages);
            let share = |part: u128, of: u128| self.prefix_budget as u128 * part / of.max(1);
            let map = share(1, MAX_MAPS * pages);
            let disk = self.disk_budget.map_or(0, |most| share(bytes.len() as u128, most.into()));
            (map + disk).min(self.prefix_budget as u128) as usize
        };
        bytes.iter().map(cost).collect()
    }

    /// Lets the last pages of a text be those in files, and gives their memory back.
    fn map_pages(
        &mut self,
        backend: &B,
        store: &mut Store,
        sequence: &SequenceKv,
        kind: PoolKind,
        text: Text<'_>,
        floor: usize,
    ) {
        let page = |number: usize| sequence.table(kind).page_of(number * PAGE_TOKENS);
        let Some(pool) = self.pool(kind) else { return };
        let in_memory =
            |number: &usize| page(*number).is_some_and(|p| !pool.allocator.is_mapped(p));
        let count = (floor..text.pages()).rev().take_while(in_memory).count();
        let start = text.pages() - count;
        let bytes = store.read(kind, text, floor, start..text.pages(), &mut || false);
        let bytes = bytes.unwrap_or_default();
        let costs = self.map_costs(&bytes);
        for ((number, bytes), cost) in (start..).zip(bytes).zip(costs) {
            let (Some(page), true) = (page(number), bytes.is_mapped()) else { return };
            let node = self.prefixes.pages(text.hash(number + 1));
            let kept = node.is_some_and(|node| node.of(kind) == Some(page));
            let Some(pool) = self.pool_mut(kind) else { return };
            // What cannot be adopted stays as it is.
            if pool.adopt(backend, &[page], vec![bytes], &[cost]).is_ok() && kept {
                let freed = pool.geometry.page_bytes(page.form());
                self.prefix_bytes = self.prefix_bytes + cost - freed;
            }
        }
    }
}

/// Where the map begins that bytes are in.
fn map_of(bytes: &Bytes) -> Option<*const u8> {
    match bytes {
        Bytes::Mapped { file, .. } => Some(file.as_ptr()),
        Bytes::Owned(_) => None,
    }
}

/// The pages of a sequence, for the store.
struct Held<'a, B: Backend> {
    backend: &'a B,
    cache: &'a KvCache<B>,
    sequence: &'a SequenceKv,
}

impl<B: Backend> Pages for Held<'_, B> {
    fn read(&self, kind: PoolKind, page: usize) -> Result<Cow<'_, [u8]>> {
        let id = self.sequence.table(kind).page_of(page * PAGE_TOKENS);
        match self.cache.pool(kind).as_ref().zip(id) {
            Some((pool, id)) => self.backend.kv_read(&pool.storage, id),
            None => Err(Error::shape(
                "store pages",
                "pages that the sequence still has",
                format!("page {page} of the {} layers", kind.as_str()),
            )),
        }
    }
}
