//! Which beginnings of texts are stored: a tree of full pages.
//!
//! Keys and values are a function of the tokens before them, and every kernel is
//! batch-invariant, so a stored page can serve any later sequence that begins
//! with the same tokens, bit for bit. A node is one full page of tokens after
//! its parent's. **Tokens are the truth**: a node is found by the hash of its text, and then
//! its tokens are compared.
//!
//! A sequence may begin at a page boundary `n` when the global pages of all
//! tokens before `n` are there, and the chunked pages of the tokens between the
//! last chunk boundary and `n`. At a chunk boundary the chunked layers hold
//! nothing, so global pages suffice. A node therefore keeps its chunked page
//! only until the text has passed the end of that chunk; where the prompt can be asked again
//! from there, until memory is needed.

use std::collections::{BTreeSet, HashMap, VecDeque};

use llama4rs_tensor::PageId;

use crate::store::{PageHash, Text};
use crate::PoolKind;

/// What a token is, for the purpose of finding it again: its id, or for an image
/// feature a hash with the highest bit set.
pub type TokenKey = u64;

/// The pages of one node, each owned once by the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePages {
    /// Page of the global layers; `None` for a model without any.
    pub global: Option<PageId>,
    /// Page of the chunked layers, while it is of use.
    pub chunked: Option<PageId>,
}

impl NodePages {
    /// The page of one kind.
    pub fn of(&self, kind: PoolKind) -> Option<PageId> {
        match kind {
            PoolKind::Global => self.global,
            PoolKind::Chunked => self.chunked,
        }
    }
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The tree owns the pages now.
    New,
    /// The same text is stored already.
    Known,
    /// The parent is gone, or another text has the same hash: nothing was stored.
    Refused,
}

#[derive(Debug)]
struct Node {
    /// The text before; the root is no node.
    parent: PageHash,
    tokens: Box<[TokenKey]>,
    pages: NodePages,
    children: usize,
    used: u64,
}

/// The tree, its nodes named by the hash at their end. It owns page numbers, but does
/// not know the allocators: what it gives up is returned to the caller.
#[derive(Debug, Default)]
pub(crate) struct PrefixTree {
    nodes: HashMap<PageHash, Node>,
    /// Nodes without children by last use: who goes first.
    leaves: BTreeSet<(u64, PageHash)>,
    clock: u64,
    /// Chunked pages that go before any node does, the oldest first: of nodes that end there,
    /// and so many before them.
    retired: VecDeque<(PageHash, usize)>,
}

impl PrefixTree {
    /// The longest stored beginning of `text`, page by page.
    pub fn find(&mut self, text: Text<'_>) -> Vec<NodePages> {
        self.clock += 1;
        let mut found = Vec::new();
        for number in 0..text.pages() {
            let Some(pages) = self.matching(text, number) else { break };
            found.push(pages);
            self.touch(text.hash(number + 1));
        }
        found
    }

    /// The pages of page `number` of a text, if it is stored.
    fn matching(&self, text: Text<'_>, number: usize) -> Option<NodePages> {
        let node = self.nodes.get(&text.hash(number + 1))?;
        let same =
            node.parent == text.hash(number) && *node.tokens == *text.page_keys(number..number + 1);
        same.then_some(node.pages)
    }

    /// Stores page `number` of a text.
    pub fn insert(&mut self, text: Text<'_>, number: usize, pages: NodePages) -> Inserted {
        let (parent, id) = (text.hash(number), text.hash(number + 1));
        if self.nodes.contains_key(&id) {
            return match self.matching(text, number) {
                Some(_) => Inserted::Known,
                None => Inserted::Refused,
            };
        }
        if number > 0 {
            let Some(node) = self.nodes.get_mut(&parent) else { return Inserted::Refused };
            node.children += 1;
            self.leaves.remove(&(node.used, parent));
        }
        self.clock += 1;
        let tokens = text.page_keys(number..number + 1).into();
        let node = Node { parent, tokens, pages, children: 0, used: self.clock };
        self.leaves.insert((node.used, id));
        self.nodes.insert(id, node);
        Inserted::New
    }

    /// The pages of the node that ends at `id`.
    pub fn pages(&self, id: PageHash) -> Option<NodePages> {
        self.nodes.get(&id).map(|node| node.pages)
    }

    /// Takes the chunked pages of node `last` and the `count - 1` before it out of
    /// the tree: the text has passed the end of their chunk.
    pub fn take_chunked(&mut self, last: PageHash, count: usize) -> Vec<PageId> {
        let mut id = last;
        let mut taken = Vec::new();
        for _ in 0..count {
            let Some(node) = self.nodes.get_mut(&id) else { break };
            taken.extend(node.pages.chunked.take());
            id = node.parent;
        }
        taken
    }

    /// Gives the node that ends at `id` a chunked page; `false`: it has one.
    pub fn restore(&mut self, id: PageHash, page: PageId) -> bool {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.pages.chunked.is_none()) else {
            return false;
        };
        node.pages.chunked = Some(page);
        true
    }

    /// Lets the chunked pages of node `last` and of the `count - 1` before it go when memory is
    /// needed, before anything else.
    pub fn retire(&mut self, last: PageHash, count: usize) {
        let nodes = &self.nodes;
        let held = |id: &PageHash| nodes.get(id).is_some_and(|node| node.pages.chunked.is_some());
        self.retired.retain(|(id, _)| *id != last && held(id));
        self.retired.push_back((last, count));
    }

    /// Takes the oldest retired pages out of the tree.
    pub fn evict_retired(&mut self) -> Option<Vec<PageId>> {
        while let Some((last, count)) = self.retired.pop_front() {
            let taken = self.take_chunked(last, count);
            if !taken.is_empty() {
                return Some(taken);
            }
        }
        None
    }

    /// Whether all nodes are one text's, with nothing to give up before them.
    pub fn is_one_text(&self) -> bool {
        let held =
            |id: &PageHash| self.nodes.get(id).is_some_and(|node| node.pages.chunked.is_some());
        self.leaves.len() <= 1 && !self.retired.iter().any(|(id, _)| held(id))
    }

    /// Removes the leaf that was not used for longest, if the last [`find`](Self::find) did not
    /// find it.
    pub fn evict_older(&mut self) -> Option<NodePages> {
        let (used, _) = self.leaves.first()?;
        if *used >= self.clock {
            return None;
        }
        self.evict()
    }

    /// Removes the leaf that was not used for longest.
    pub fn evict(&mut self) -> Option<NodePages> {
        let (_, id) = self.leaves.pop_first()?;
        let node = self.nodes.remove(&id)?;
        if let Some(above) = self.nodes.get_mut(&node.parent) {
            above.children -= 1;
            if above.children == 0 {
                self.leaves.insert((above.used, node.parent));
            }
        }
        Some(node.pages)
    }

    fn touch(&mut self, id: PageHash) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if self.leaves.remove(&(node.used, id)) {
            self.leaves.insert((self.clock, id));
        }
        node.used = self.clock;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::extend_chain;
    use crate::PAGE_TOKENS;

    /// Token keys and the chain of their pages.
    struct Sample(Vec<TokenKey>, Vec<PageHash>);

    impl Sample {
        fn text(&self) -> Text<'_> {
            Text::new(&self.1, &self.0)
        }
    }

    fn sample(pages: &[u64]) -> Sample {
        let keys: Vec<_> = pages
            .iter()
            .flat_map(|&p| (0..PAGE_TOKENS as u64).map(move |i| p * 1000 + i))
            .collect();
        let mut chain = Vec::new();
        extend_chain(&mut chain, PageHash::root(&[0; 32]), &keys);
        Sample(keys, chain)
    }

    fn find(tree: &mut PrefixTree, path: &[u64]) -> Vec<NodePages> {
        tree.find(sample(path).text())
    }

    fn pages(global: u32) -> NodePages {
        NodePages {
            global: Some(PageId::sealed(global)),
            chunked: Some(PageId::exact(global + 100)),
        }
    }

    /// Stores every page of `path` under the number of its last element.
    fn store(tree: &mut PrefixTree, path: &[u64], pages: NodePages) -> Inserted {
        tree.insert(sample(path).text(), path.len() - 1, pages)
    }

    fn globals(found: &[NodePages]) -> Vec<usize> {
        found.iter().filter_map(|pages| pages.global).map(PageId::index).collect()
    }

    #[test]
    fn finds_the_longest_beginning() {
        let mut tree = PrefixTree::default();
        for (id, path) in [&[1][..], &[1, 2], &[1, 3]].iter().enumerate() {
            assert_eq!(store(&mut tree, path, pages(id as u32)), Inserted::New);
        }
        assert_eq!(store(&mut tree, &[1, 3], pages(9)), Inserted::Known);
        assert_eq!(store(&mut tree, &[7, 8], pages(9)), Inserted::Refused, "no parent");
        assert_eq!(globals(&find(&mut tree, &[1, 3, 4])), [0, 2]);
        assert_eq!(globals(&find(&mut tree, &[3, 1])), []);
        // Another text with the same hash.
        let Sample(mut keys, chain) = sample(&[1, 2]);
        keys[PAGE_TOKENS] ^= 1;
        let other = Text::new(&chain, &keys);
        assert_eq!(globals(&tree.find(other)), [0]);
        assert_eq!(tree.insert(other, 1, pages(9)), Inserted::Refused);
    }

    #[test]
    fn evicts_children_before_parents_and_the_oldest_first() {
        let mut tree = PrefixTree::default();
        for (id, path) in [&[1][..], &[1, 2], &[1, 3], &[4]].iter().enumerate() {
            store(&mut tree, path, pages(id as u32));
        }
        find(&mut tree, &[1, 2]);
        let order: Vec<_> = std::iter::from_fn(|| tree.evict()).collect();
        let order: Vec<_> = order.iter().filter_map(|p| p.global).map(PageId::index).collect();
        assert_eq!(order, [2, 3, 1, 0]);
        assert!(tree.nodes.is_empty());
    }

    #[test]
    fn chunked_pages_leave_when_the_chunk_is_over() {
        let mut tree = PrefixTree::default();
        for (id, path) in [&[1][..], &[1, 2], &[1, 2, 3]].iter().enumerate() {
            store(&mut tree, path, pages(id as u32));
        }
        let last = sample(&[1, 2]).text().hash(2);
        assert_eq!(tree.take_chunked(last, 2), [101, 100].map(PageId::exact));
        assert_eq!(tree.take_chunked(last, 2), []);
        let left: Vec<_> = find(&mut tree, &[1, 2, 3]).iter().map(|pages| pages.chunked).collect();
        assert_eq!(left, [None, None, Some(PageId::exact(102))]);
    }
}
