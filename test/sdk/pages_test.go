package sdk

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var block = regexp.MustCompile("(?ms)^```(ts|python)\n(.*?)^```$")

// What the pages show is what TestTasks runs, to the letter, and all of it.
func TestPagesShowThePrograms(t *testing.T) {
	for _, page := range []struct{ path, sources, tasks string }{
		{"../../docs/sdk-typescript.md", "../../sdk/typescript/src/*.ts", "../../sdk/typescript/src/tasks.ts"},
		{"../../docs/sdk-python.md", "../../sdk/python/*.py", "../../sdk/python/tasks.py"},
	} {
		text := read(t, page.path)
		var programs strings.Builder
		paths, err := filepath.Glob(page.sources)
		if err != nil || len(paths) < 2 {
			t.Fatal(paths, err)
		}
		for _, path := range paths {
			programs.WriteString(read(t, path) + "\n")
		}
		blocks := block.FindAllStringSubmatch(text, -1)
		var shown strings.Builder
		for _, b := range blocks {
			shown.WriteString(b[2])
			if !strings.Contains(programs.String(), b[2]) {
				t.Errorf("%s: this is in no program:\n%s", page.path, b[2])
			}
		}
		for line := range strings.Lines(read(t, page.tasks)) {
			if strings.TrimSpace(line) != "" && !strings.Contains(shown.String(), line) {
				t.Errorf("%s does not show %q", page.path, line)
			}
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
