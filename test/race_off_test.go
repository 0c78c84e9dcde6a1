//go:build !race

package test

const detector = false
