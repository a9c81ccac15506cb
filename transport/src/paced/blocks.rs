//! What a link's socket is read into.

use std::sync::Arc;

use super::core::Block;

/// A few blocks that are used again once nobody keeps bytes of them.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The first is the one to read into, and nobody keeps bytes of it.
    blocks: Vec<Block>,
    block_bytes: usize,
    blocks_max: usize,
}

impl Blocks {
    pub(super) fn new(block_bytes: usize, blocks_max: usize) -> Self {
        Self { blocks: vec![new(block_bytes)], block_bytes, blocks_max }
    }

    /// Room to read into.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if Arc::get_mut(&mut self.blocks[0]).is_none() {
            // The next one: whoever kept the first did so because there is one.
            match self.blocks.iter().position(is_free) {
                Some(free) => self.blocks.swap(0, free),
                None => self.blocks.insert(0, new(self.block_bytes)),
            }
        }
        Arc::get_mut(&mut self.blocks[0]).map_or(&mut [], |block| &mut *block)
    }

    /// What was read into, and whether it may be kept: another is there then.
    pub(super) fn filled(&self) -> (&Block, bool) {
        let others = &self.blocks[1..];
        (&self.blocks[0], self.blocks.len() < self.blocks_max || others.iter().any(is_free))
    }
}

fn new(bytes: usize) -> Block {
    vec![0; bytes].into()
}

fn is_free(block: &Block) -> bool {
    Arc::strong_count(block) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_blocks_are_kept_and_no_more() {
        let mut blocks = Blocks::new(16, 3);
        let mut kept = Vec::new();
        for _ in 0..10 {
            assert_eq!(blocks.room().len(), 16);
            let (block, may_keep) = blocks.filled();
            if may_keep {
                kept.push(Arc::clone(block));
            }
        }
        assert_eq!((kept.len(), blocks.blocks.len()), (2, 3));
        kept.pop();
        blocks.room();
        assert!(blocks.filled().1, "one is free again");
    }
}
