// Package readahead is the filter that notices sequential reads and reads on
// before it is asked.
//
// It guarantees that a read never gives bytes that were overwritten before it
// began, if they were overwritten through the filter: every change drops what
// was read ahead of its range, before and after, also what is on its way. A read
// ahead that fails is forgotten: whoever wants the bytes asks the node, and gets
// the node's own error. What is read ahead takes memory for at most [MaxWindows]
// windows, however many clients there are. Close waits for all that is on its
// way.
//
// It does not guarantee that it notices what others change in the node: what was
// read ahead may be that old.
package readahead
