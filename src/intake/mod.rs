//! Takes in an uploaded file.
