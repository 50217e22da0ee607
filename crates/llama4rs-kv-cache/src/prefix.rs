//! Which beginnings of texts are stored: a tree of full pages.
//!
//! Keys and values are a function of the tokens before them, and every kernel is
//! batch-invariant, so a stored page can serve any later sequence that begins
//! with the same tokens, bit for bit. A node is one full page of tokens after
//! its parent's. **Tokens are the truth**: a node is found by a hash, and then
//! its tokens are compared.
//!
//! A sequence may begin at a page boundary `n` when the global pages of all
//! tokens before `n` are there, and the chunked pages of the tokens between the
//! last chunk boundary and `n`. At a chunk boundary the chunked layers hold
//! nothing, so global pages suffice. A node therefore keeps its chunked page
//! only until the text has passed the end of that chunk.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use llama4rs_tensor::PageId;

use crate::PAGE_TOKENS;

/// What a token is, for the purpose of finding it again: its id, or for an image
/// feature a hash with the highest bit set.
pub type TokenKey = u64;

/// A node's name: a hash of all tokens up to its end.
pub(crate) type NodeId = u64;

/// The pages of one node, each owned once by the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePages {
    /// Page of the global layers; `None` for a model without any.
    pub global: Option<PageId>,
    /// Page of the chunked layers, while it is of use.
    pub chunked: Option<PageId>,
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The tree owns the pages now.
    New(NodeId),
    /// The same text is stored already.
    Known(NodeId),
    /// The parent is gone, or another text has the same hash: nothing was stored.
    Refused,
}

#[derive(Debug)]
struct Node {
    parent: Option<NodeId>,
    tokens: Box<[TokenKey]>,
    pages: NodePages,
    children: usize,
    used: u64,
}

/// The tree. It owns page numbers, but does not know the allocators: what it
/// gives up is returned to the caller.
#[derive(Debug, Default)]
pub(crate) struct PrefixTree {
    nodes: HashMap<NodeId, Node>,
    /// Nodes without children by last use: who goes first.
    leaves: BTreeSet<(u64, NodeId)>,
    clock: u64,
}

/// The name of the page `tokens` after `parent`.
fn name(parent: Option<NodeId>, tokens: &[TokenKey]) -> NodeId {
    let mut hasher = DefaultHasher::new();
    (parent, tokens).hash(&mut hasher);
    hasher.finish()
}

impl PrefixTree {
    /// The longest stored beginning of `tokens`, page by page.
    pub fn find(&mut self, tokens: &[TokenKey]) -> Vec<(NodeId, NodePages)> {
        let mut found = Vec::new();
        let mut parent = None;
        self.clock += 1;
        for page in tokens.chunks_exact(PAGE_TOKENS) {
            let id = name(parent, page);
            let Some(pages) = self.matching(id, parent, page) else { break };
            found.push((id, pages));
            self.touch(id);
            parent = Some(id);
        }
        found
    }

    fn matching(
        &self,
        id: NodeId,
        parent: Option<NodeId>,
        tokens: &[TokenKey],
    ) -> Option<NodePages> {
        let node = self.nodes.get(&id)?;
        (node.parent == parent && *node.tokens == *tokens).then_some(node.pages)
    }

    /// Stores the page `tokens` after `parent`.
    pub fn insert(
        &mut self,
        parent: Option<NodeId>,
        tokens: &[TokenKey],
        pages: NodePages,
    ) -> Inserted {
        let id = name(parent, tokens);
        if self.nodes.contains_key(&id) {
            return match self.matching(id, parent, tokens) {
                Some(_) => Inserted::Known(id),
                None => Inserted::Refused,
            };
        }
        if let Some(parent) = parent {
            let Some(node) = self.nodes.get_mut(&parent) else { return Inserted::Refused };
            node.children += 1;
            self.leaves.remove(&(node.used, parent));
        }
        self.clock += 1;
        let node = Node { parent, tokens: tokens.into(), pages, children: 0, used: self.clock };
        self.leaves.insert((node.used, id));
        self.nodes.insert(id, node);
        Inserted::New(id)
    }

    /// Takes the chunked pages of node `last` and the `count - 1` before it out of
    /// the tree: the text has passed the end of their chunk.
    pub fn take_chunked(&mut self, last: NodeId, count: usize) -> Vec<PageId> {
        let mut id = Some(last);
        let mut taken = Vec::new();
        for _ in 0..count {
            let Some(node) = id.and_then(|id| self.nodes.get_mut(&id)) else { break };
            taken.extend(node.pages.chunked.take());
            id = node.parent;
        }
        taken
    }

    /// Removes the leaf that was not used for longest.
    pub fn evict(&mut self) -> Option<NodePages> {
        let (_, id) = self.leaves.pop_first()?;
        let node = self.nodes.remove(&id)?;
        if let Some((parent, above)) =
            node.parent.and_then(|parent| Some((parent, self.nodes.get_mut(&parent)?)))
        {
            above.children -= 1;
            if above.children == 0 {
                self.leaves.insert((above.used, parent));
            }
        }
        Some(node.pages)
    }

    fn touch(&mut self, id: NodeId) {
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

    fn text(pages: &[u64]) -> Vec<TokenKey> {
        pages.iter().flat_map(|&p| (0..PAGE_TOKENS as u64).map(move |i| p * 1000 + i)).collect()
    }

    fn pages(global: u32) -> NodePages {
        NodePages {
            global: Some(PageId::sealed(global)),
            chunked: Some(PageId::exact(global + 100)),
        }
    }

    /// Stores every page of `path` under the number of its last element.
    fn store(tree: &mut PrefixTree, path: &[u64], pages: NodePages) -> Inserted {
        let tokens = text(path);
        let (before, last) = tokens.split_at(tokens.len() - PAGE_TOKENS);
        let parent = before.chunks_exact(PAGE_TOKENS).fold(None, |id, page| Some(name(id, page)));
        tree.insert(parent, last, pages)
    }

    fn globals(found: &[(NodeId, NodePages)]) -> Vec<usize> {
        found.iter().filter_map(|(_, pages)| pages.global).map(PageId::index).collect()
    }

    #[test]
    fn finds_the_longest_beginning() {
        let mut tree = PrefixTree::default();
        for (id, path) in [&[1][..], &[1, 2], &[1, 3]].iter().enumerate() {
            assert!(matches!(store(&mut tree, path, pages(id as u32)), Inserted::New(_)));
        }
        assert!(matches!(store(&mut tree, &[1, 3], pages(9)), Inserted::Known(_)));
        assert_eq!(store(&mut tree, &[7, 8], pages(9)), Inserted::Refused, "no parent");
        assert_eq!(globals(&tree.find(&text(&[1, 3, 4]))), [0, 2]);
        assert_eq!(globals(&tree.find(&text(&[3, 1]))), []);
        let mut part = text(&[1, 2]);
        part.pop();
        assert_eq!(globals(&tree.find(&part)), [0], "whole pages only");
    }

    #[test]
    fn evicts_children_before_parents_and_the_oldest_first() {
        let mut tree = PrefixTree::default();
        for (id, path) in [&[1][..], &[1, 2], &[1, 3], &[4]].iter().enumerate() {
            store(&mut tree, path, pages(id as u32));
        }
        tree.find(&text(&[1, 2]));
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
        let found = tree.find(&text(&[1, 2]));
        assert_eq!(tree.take_chunked(found[1].0, 2), [101, 100].map(PageId::exact));
        assert_eq!(tree.take_chunked(found[1].0, 2), []);
        let left: Vec<_> =
            tree.find(&text(&[1, 2, 3])).iter().map(|(_, pages)| pages.chunked).collect();
        assert_eq!(left, [None, None, Some(PageId::exact(102))]);
    }
}
