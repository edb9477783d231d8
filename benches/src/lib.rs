//! What the harnesses share: how they run and end, what the kernel says about their processes, and where figures go.

pub mod harness;
pub mod measure;
