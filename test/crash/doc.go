// Package crash tests what is left of an image when the power, the disk or the
// file system fails while it is written to: in one process, over files whose
// every change is recorded, and with QEMU's word for what came of it.
package crash
