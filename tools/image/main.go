package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	f := flag.NewFlagSet("image -out DIR PLATFORM=BINARY...", flag.ContinueOnError)
	out := f.String("out", "", "write the layout to `DIR`, in place of what is there")
	version := f.String("version", "unknown", "the version, which is the image's name in the layout too")
	license := f.String("license", "../../LICENSE", "the license `FILE`")
	certificates := f.String("certificates", "/etc/ssl/certs/ca-certificates.crt", "the authorities that the image trusts, a PEM `FILE`")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *out == "" || f.NArg() == 0 {
		return fmt.Errorf("needs -out, and binaries as linux/amd64=PATH")
	}
	created, err := epoch(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	var binaries []Binary
	for _, arg := range f.Args() {
		b, err := ParseBinary(arg)
		if err != nil {
			return err
		}
		binaries = append(binaries, b)
	}
	index, err := Index(Content{License: *license, Certificates: *certificates, Version: *version, Created: created}, binaries)
	if err != nil {
		return err
	}
	digest, err := Write(index, *out, *version)
	if err != nil {
		return err
	}
	fmt.Println(digest)
	return nil
}

// epoch is the date of all files: seconds since 1970, as SOURCE_DATE_EPOCH has
// them.
func epoch(seconds string) (time.Time, error) {
	if seconds == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	s, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(s, 0).UTC(), nil
}
