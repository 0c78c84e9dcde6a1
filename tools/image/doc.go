// Command image builds the container image of extentd without a container
// engine: an OCI image layout with one image for each platform, of the static
// binary, which it is given, and little else. What it makes is what the Dockerfile
// makes.
//
// The same binaries, version and certificates give the same digests: every file carries the same date, that of SOURCE_DATE_EPOCH or 1970.
package main
