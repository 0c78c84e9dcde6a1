// Package test holds black-box tests of the built binary. They make images
// with qemu-img and qemu-io, read and write them over HTTP, over NBD and with
// the local verbs, and compare with what QEMU itself says of them.
package test
