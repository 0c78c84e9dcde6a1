// Command extentd serves disk images over HTTP: where their blocks are, and
// what is in them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/service"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := rootCommand() //nolint:contextcheck // cobra hands the context to the verbs
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var result exitCode
	if errors.As(err, &result) {
		return int(result)
	}
	_, _ = fmt.Fprintf(stderr, "extentd: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if errors.As(err, new(*unsupportedCheck)) {
		return exitUnsupported
	}
	return 1
}

// An exitCode ends the process with a code that says what was found, and nothing
// more to say.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func rootCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "extentd",
		Short:         "Serve disk images over HTTP: where their blocks are, and what is in them",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.AddCommand(serveCommand(), healthCommand(), infoCommand(), mapCommand(), checkCommand(), createCommand(), copyCommand(), lsCommand(), versionCommand())
	return cmd
}

// formats are the drivers of this build.
func formats() map[string]service.Driver {
	return map[string]service.Driver{
		"qcow2": service.QCOW2Driver(),
		"raw":   service.RawDriver(),
	}
}
