//! manifests
mod head;
mod inventory;
mod parse;
mod problem;
mod text;
