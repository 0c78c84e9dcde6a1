package main

import (
	"strings"
	"testing"
)

func TestParseRemote(t *testing.T) {
	for arg, want := range map[string]remoteURL{
		"http://h":                                   {server: "http://h"},
		"http://h:7080/":                             {server: "http://h:7080"},
		"https://h/vm.qcow2":                         {server: "https://h", image: "vm.qcow2"},
		"https://h/disks/vm.qcow2":                   {server: "https://h/disks", image: "vm.qcow2"},
		"http://h/v1/images":                         {server: "http://h", full: true},
		"http://h/v1/images/":                        {server: "http://h", full: true},
		"http://h/v1/images/vm.qcow2":                {server: "http://h", image: "vm.qcow2", full: true},
		"http://h/v1/images/vm.qcow2/data":           {server: "http://h", image: "vm.qcow2", full: true},
		"http://h/a/v1/images/vm.qcow2?ticket=t":     {server: "http://h/a", image: "vm.qcow2", full: true, ticket: "t"},
		"http://[::1]:70/vm.raw?ticket=a%26b":        {server: "http://[::1]:70", image: "vm.raw", ticket: "a&b"},
		"http://h/v1/imagesque":                      {server: "http://h/v1", image: "imagesque"},
		"http+unix:///vm.raw?socket=/run/s":          {server: "unix:/run/s", image: "vm.raw"},
		"http+unix:///?socket=/run/s":                {server: "unix:/run/s"},
		"http+unix:///v1/images/a?socket=s&ticket=t": {server: "unix:s", image: "a", full: true, ticket: "t"},
	} {
		got, err := parseRemote(arg)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", arg, got, err, want)
		}
		if want.ticket != "" && strings.Contains(got.String(), "ticket") {
			t.Errorf("%s: the ticket is shown: %s", arg, got)
		}
		again, err := parseRemote(got.String())
		if err != nil || again.server != want.server || again.image != want.image {
			t.Errorf("%s: %s is %+v, %v", arg, got, again, err)
		}
	}
	for _, arg := range []string{
		"http://", "http:///vm.raw", "http://user:hidden@h/vm.raw", "http://h/vm.raw#hidden", "http://h/vm.raw?token=hidden",
		"http://h/vm.raw?ticket=hidden&ticket=hidden", "http://h/vm.raw?%zz=hidden", "http://h/.hidden?ticket=x;y",
		"http://h/v1/images/vm.raw/extents?ticket=hidden", "http://h/vm.raw?socket=hidden", "http+unix:///vm.raw",
		"http+unix://h/vm.raw?socket=hidden", "http+unix:///a/vm.raw?socket=hidden", "http:hidden", "http://h/%zz?ticket=hidden",
	} {
		if got, err := parseRemote(arg); err == nil || strings.Contains(err.Error(), "ticket") && strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %+v, %v", arg, got, err)
		}
	}
}

func TestEndpointKinds(t *testing.T) {
	for arg, want := range map[string]string{
		"vm.qcow2": "file", "/dev/sda": "file", "http": "file", "nbd": "file", "nbd.raw": "file", "a:b.raw": "file", "./http://x": "file",
		"http://h/x": "http", "HTTPS://h/x": "http", "http+unix:///x?socket=s": "http",
		"nbd://h": "nbd", "nbds://h/x": "nbd", "nbd+unix:///?socket=s": "nbd", "nbds+unix:///x?socket=s": "nbd", "NBD://h": "nbd",
	} {
		got := "file"
		if isRemote(arg) {
			got = "http"
		}
		if isNBD(arg) {
			got += "nbd"
		}
		if strings.TrimPrefix(got, "file") != strings.TrimPrefix(want, "file") {
			t.Errorf("%s is %s, want %s", arg, got, want)
		}
	}
}
