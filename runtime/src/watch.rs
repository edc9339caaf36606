//! The watch as a typed state machine without IO: plain inputs in, cache events and the next action out.
