//! Tables of (pod, observed) and what is decided.
