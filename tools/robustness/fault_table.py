"""Which tests show which row of the table of faults (docs/robustness.md)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """A fault, what is required of convbn, and the tests that hold it to that.

    Attributes:
        name: the fault, in a few words.
        required: what must happen.
        tests: their ids, without parameters.
    """

    name: str
    required: str
    tests: tuple[str, ...]


def _in(path: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{path}.py::test_{name}" for name in names)


MUTANTS = _in(
    "faults/test_mutants",
    "no_mutant_crashes_hangs_balloons_or_gives_a_wrong_result",
    "the_other_commands_survive_as_well",
)

ROWS: dict[int, Row] = {
    1: Row(
        "code in a pickled checkpoint",
        "refused, with the names it would call; it does not run",
        (
            *_in(
                "export/test_checkpoint_files",
                "code_is_not_run",
                "code_that_hides_behind_a_harmless_name_is_not_run",
                "plain_pickle",
            ),
            *_in("export/test_artifact_kinds", "pickled_code_is_seen_and_not_run"),
            *_in("cli/test_checkpoints", "pickled_code_does_not_run"),
            *_in("faults/test_all_commands", "pickled_code_runs_in_no_command"),
        ),
    ),
    2: Row(
        "code in .pt2, TorchScript, an import path, an engine",
        "only with the flag for it; a safe loader that fails is never followed by an unsafe one",
        (
            *_in(
                "export/test_trusted_files",
                "a_program_with_code",
                "torchscript_with_code",
                "a_pickle_in_a_torchscript_archive_is_listed",
                "a_pickled_module_with_code",
                "damage_is_no_way_around_the_restricted_loader",
            ),
            *_in("export/test_engine_runner", "without_trust_nothing_is_loaded"),
            *_in("cli/test_engine_trust", "nothing_is_handed_over_without_trust"),
            *_in("export/test_architecture_names", "import_path", "current_folder_only_when_asked"),
            *_in(
                "export/test_hub_names",
                "a_config_that_names_code_runs_none",
                "a_network_that_fails_is_no_reason_to_take_a_pickle",
            ),
            *_in("export/test_precision_calibration", "pickles_are_not_run"),
            *_in(
                "cli/test_checkpoints",
                "the_current_folder_only_when_asked",
                "a_file_of_the_current_folder_is_not_imported_by_name",
            ),
            *_in("cli/test_load_fused", "the_name_in_the_file_is_not_followed", "trust_through_the_api"),
        ),
    ),
    3: Row(
        "external data that leads out: ../, absolute, links of both kinds, swapped after the check",
        "refused on read and on write",
        (
            *_in(
                "export/test_onnx_on_disk",
                "bad_external_data",
                "absolute_location_is_not_read",
                "references_are_not_saved_elsewhere",
            ),
            *_in(
                "export/test_onnx_streaming",
                "a_file_that_changes_after_the_check",
                "links_put_in_place_after_the_check",
                "the_own_file_cannot_be_named",
            ),
            *_in("cli/test_external_data", "paths_that_lead_out"),
            MUTANTS[0],
        ),
    ),
    4: Row(
        "external data missing, too short, overlapping",
        "one typed line",
        (
            *_in(
                "export/test_onnx_on_disk",
                "bad_external_data",
                "shortened_data_file",
                "small_data_read_over_and_over",
            ),
            *_in("export/test_onnx_streaming", "overlap", "tied_weights_stay_one"),
            MUTANTS[0],
        ),
    ),
    5: Row(
        "files cut short, empty, random, with flipped bits or trailing bytes",
        "one typed line or an equal result; no output file",
        (
            *MUTANTS,
            *_in(
                "export/test_onnx_on_disk", "damage_gives_typed_errors_or_a_sound_model", "what_is_no_model"
            ),
            *_in("export/test_onnx_streaming", "cut_anywhere", "damage_is_found_or_harmless"),
            *_in("export/test_checkpoint_files", "missing_file_and_damage"),
            *_in("export/test_trusted_files", "cut_short", "random_bytes"),
            *_in("export/test_artifact_kinds", "cut_short", "noise_gives_only_typed_errors"),
            *_in("export/test_engine_runner", "what_is_no_engine"),
            *_in("export/test_precision_calibration", "damaged_files"),
            *_in("cli/test_fuse_command", "bad_input_is_one_line", "cut_file"),
            *_in("cli/test_load_fused", "cut_short"),
        ),
    ),
    6: Row(
        "dims negative, 2⁴⁰, overflowing, unlike the bytes; wrong type codes",
        "sizes are held against bytes before anything is allocated",
        (
            *_in(
                "export/test_onnx_on_disk",
                "tensors_that_lie",
                "lying_tensors_are_found_in_attributes_and_branches",
                "every_type_of_tensor_is_understood",
            ),
            *_in("fuse/test_onnx_fold", "initializer_that_lies_about_its_size"),
            *_in("fuse/test_onnx_outside", "fewer_bytes_than_the_shape_needs"),
            *_in("fuse/torch/test_torch_rebuild", "a_huge_tensor_is_not_allocated"),
            MUTANTS[0],
        ),
    ),
    7: Row(
        "bombs: ConstantOfShape, Expand, nested bodies, recursive functions, archives, 3,000 nodes in a row",
        "nothing is run to fold it; 1 GiB of memory and 10 s are enough",
        (
            *MUTANTS,
            *_in("fuse/test_onnx_fold", "expand_bomb_is_not_computed"),
            *_in(
                "fuse/test_local_functions",
                "recursion_is_an_error",
                "a_bomb_is_not_written_out",
                "a_bomb_beside_a_fold",
                "large_constants_are_not_written_out_many_times",
            ),
            *_in("fuse/test_constants", "squares_of_squares_are_not_computed"),
            *_in("fuse/test_moves", "a_stream_of_three_hundred_blocks"),
            *_in("export/test_onnx_on_disk", "deep_nesting_does_not_exhaust_the_stack"),
            *_in(
                "export/test_checkpoint_files",
                "compressed_archive_is_refused",
                "bombs_are_refused_before_anything_is_allocated",
                "a_checkpoint_that_holds_itself_ends",
            ),
            *_in("export/test_trusted_files", "members_that_overlap_are_counted"),
        ),
    ),
    8: Row(
        "models beyond 2 GiB",
        "external data, written in pieces",
        (
            *_in("cli/test_large_models", "memory_follows_from_the_largest_weight", "beyond_two_gibibytes"),
            *_in("export/test_onnx_on_disk", "a_sparse_file_beyond_two_gigabytes_is_not_read"),
            *_in(
                "export/test_onnx_streaming",
                "never_beyond_the_limit",
                "beyond_the_limit_a_data_file_is_made",
                "memory_does_not_follow_from_the_size",
            ),
        ),
    ),
    9: Row(
        "cycles, dangling and duplicate names, unsorted nodes, no opset or one of the future",
        "refused, or read as the runtime does",
        (
            *_in("faults/test_structure", "graphs_that_are_none_are_refused_by_every_command"),
            *_in("faults/test_structure", "what_the_runtime_reads_is_read"),
            *_in("faults/test_structure", "what_fuzzing_found_stays"),
            *_in("faults/test_texts", "a_name_that_is_not_utf8_is_refused"),
            *_in("export/test_onnx_on_disk", "model_without_opset"),
            *_in("fuse/test_freeze", "before_ir_4_a_file_that_declares_none_stays_so"),
            MUTANTS[0],
        ),
    ),
    10: Row(
        "BatchNorm in training mode, with further outputs in use, with spatial=0 or is_test=0",
        "left, with the reason",
        (
            *_in(
                "fuse/test_onnx_fold",
                "training_mode_stays",
                "training_by_output_count_in_old_opsets_stays",
            ),
            *_in("fuse/test_constants", "in_training_mode_statistics_that_are_read_keep_it"),
            *_in("faults/test_structure", "old_forms_of_training_stay"),
            *_in("fuse/torch/test_torch_program", "training_batchnorm_stays_in_every_lowering"),
        ),
    ),
    11: Row(
        "a layer's output read twice, given out, or captured by a body",
        "left",
        (
            *_in(
                "fuse/test_onnx_fold",
                "conv_read_by_another_node_stays",
                "conv_that_is_an_output_stays",
                "conv_captured_by_a_branch_stays",
            ),
            *_in(
                "fuse/test_bodies",
                "a_conv_before_the_branch_stays_without_its_batchnorm",
                "a_conv_that_the_branch_also_gives_out_stays",
                "a_conv_outside_captured_in_a_loop_stays",
                "a_conv_whose_result_is_scanned_stays",
            ),
            *_in(
                "fuse/torch/test_torch_traps",
                "conv_whose_output_is_returned_too",
                "conv_output_that_another_layer_takes_by_keyword",
                "forward_that_keeps_the_convs_output",
            ),
            MUTANTS[0],
        ),
    ),
    12: Row(
        "shared weights and parameters, weights given out, names that clash",
        "copied on write, under fresh names",
        (
            *_in(
                "fuse/test_onnx_fold",
                "shared_weight_is_cloned",
                "weight_that_is_an_output_is_kept_as_it_was",
                "bias_that_is_beta_too",
                "new_bias_avoids_names_in_use",
            ),
            *_in("fuse/test_bodies", "one_weight_captured_by_both_branches"),
            *_in("fuse/test_local_functions", "one_weight_for_both_calls_is_cloned", "names_that_are_taken"),
            *_in("fuse/test_merge", "shared_weights_are_read_before_any_edit_changes_them"),
            *_in("fuse/torch/test_torch_traps", "tied_weight_is_cloned_in_a_program"),
            MUTANTS[0],
        ),
    ),
    13: Row(
        "initializers that a caller may override",
        "left, or --freeze",
        (
            *_in("fuse/test_onnx_fold", "overridable_initializer_stays"),
            *_in(
                "fuse/test_freeze",
                "frozen_it_folds",
                "what_was_frozen_cannot_be_fed_any_more",
                "not_frozen_it_stays",
                "before_ir_4_they_are_constants_anyway",
            ),
            *_in("cli/test_freeze_option", "fuse_freezes", "without_it_nothing_folds_and_the_reason_is_told"),
            MUTANTS[0],
        ),
    ),
    14: Row(
        "broadcasting: constants that only look as if one a channel; pads of every kind",
        "exact rules of shapes",
        (
            *_in("fuse/test_refusals", "it_stays", "a_constant_along_another_axis_is_no_number_a_channel"),
            *_in(
                "fuse/test_moves",
                "constants_per_channel_move_too",
                "a_constant_along_the_width_is_none_per_channel",
                "a_sum_broadcast_along_the_channels_stays",
                "forward_into_a_padded_conv_stays",
            ),
            *_in(
                "fuse/test_pad",
                "copies_pass_every_map_both_ways",
                "zeros_stop_a_shift",
                "a_crop_beside_zeros_does_not",
                "other_numbers_than_zero_pass_nothing",
                "padded_channels_stop_it",
            ),
            *_in("fuse/test_onnx_fold", "gemm_with_a_batch_shaped_bias"),
            *_in("fuse/test_random_graphs", "float32"),
        ),
    ),
    15: Row(
        "fp16 and bf16: overflow, underflow, mixed with float32",
        "folded in float64, held against the range, or left",
        (
            *_in(
                "fuse/test_rounding",
                "bound_holds_in_every_channel",
                "overflow_is_refused",
                "underflow_is_refused",
                "bfloat16_is_rounded_once",
                "vector_overflow_is_refused",
            ),
            *_in(
                "fuse/test_onnx_fold",
                "float16",
                "float16_overflow_stays",
                "float16_conv_with_float32_statistics",
                "bfloat16",
            ),
            *_in("fuse/test_refusals", "a_scale_that_half_precision_cannot_hold"),
            *_in("fuse/test_random_graphs", "other_dtypes"),
            *_in(
                "export/test_precision_casting",
                "an_activation_beyond_float16_is_found_on_the_data",
                "values_too_small_for_float16_stay",
                "weights_that_float16_cannot_hold",
            ),
        ),
    ),
    16: Row(
        "variance 0, negative or NaN; odd ε; Inf or NaN in parameters and weights",
        "what is not finite is left and told; --strict fails",
        (
            *_in("fuse/test_affine", "epsilon_counts", "not_finite", "no_positive_spread"),
            *_in("fuse/test_onnx_fold", "bad_statistics_stay"),
            *_in("fuse/test_refusals", "statistics_that_are_no_numbers", "weights_that_are_no_numbers"),
            *_in("fuse/test_constants", "weights_that_are_not_finite_stay"),
            *_in("faults/test_strict", "each_warning_fails_and_writes_nothing"),
            MUTANTS[0],
        ),
    ),
    17: Row(
        "opsets 1–25, IR 3–12, constants of every kind, functions, bodies, empty inputs",
        "folded, left, or one typed line",
        (
            *_in("fuse/test_onnx_fold", "opsets", "empty_bias_name", "weights_stored_as_typed_fields"),
            *_in("fuse/test_onnx_fold", "parameters_behind_chains", "inside_a_branch_folds"),
            *_in("fuse/test_bodies", "a_body_in_a_body", "an_if_inside_a_loop", "slices_of_a_scan"),
            *_in(
                "fuse/test_local_functions",
                "a_function_called_twice_with_other_weights",
                "functions_that_call_functions",
                "a_function_of_another_opset",
            ),
            *_in(
                "fuse/test_quantized_weights",
                "scales_take_the_magnitude_and_integers_the_sign",
                "the_lowest_integer_has_no_negative",
            ),
            *_in("fuse/test_freeze", "a_sparse_initializer_that_is_an_input_is_none_either"),
            *_in(
                "faults/test_backend_cases",
                "operators_compute_what_they_did",
                "light_models_with_random_weights",
            ),
        ),
    ),
    18: Row(
        "PyTorch: called twice, two BatchNorms on one layer, hooks, weight_norm, pruning, tied weights",
        "calls are counted, hooked modules left, computed weights left with the way out",
        _in(
            "fuse/torch/test_torch_traps",
            "conv_and_batchnorm_called_twice",
            "conv_called_twice_with_the_batchnorm_on_one_path",
            "batchnorm_shared_by_two_convs",
            "one_conv_with_two_batchnorms",
            "two_modules_with_one_parameter",
            "two_parameters_in_one_storage",
            "hook_on_either_module",
            "hook_that_changes_the_output_between",
            "weight_that_is_computed_from_others",
            "parametrization_that_was_removed_folds",
        )
        + _in("fuse/torch/test_torch_downstream", "hooks_of_every_kind_stay_and_see_what_they_saw"),
    ),
    19: Row(
        "PyTorch: Linear over a sequence before BatchNorm1d, convolution of one sample",
        "axes follow from captured shapes",
        _in(
            "fuse/torch/test_torch_traps",
            "linear_over_a_sequence_as_long_as_its_channels",
            "convolution_of_one_sample_as_long_as_its_channels",
            "missing_inputs_are_named_where_they_would_settle_it",
        )
        + _in("fuse/torch/test_torch_layers", "linear_on_two_axes_folds"),
    ),
    20: Row(
        "PyTorch: training mode, no running statistics, momentum=None, affine=False, half in eval",
        "only BatchNorms in eval mode fold; the caller's model stays as it was",
        _in("fuse/torch/test_torch_traps", "half_evaluated_model", "without_running_statistics")
        + _in(
            "fuse/torch/test_torch_layers",
            "without_running_scale_and_momentum",
            "batchnorm_behind_a_batchnorm_without_parameters",
        )
        + _in("fuse/torch/test_torch_program", "training_batchnorm_stays_in_every_lowering")
        + _in("fuse/torch/test_torch_capture", "failed_proof_leaves_the_module_alone")
        + _in("bench/test_equality", "the_callers_module_and_inputs_stay_as_they_were"),
    ),
    21: Row(
        "PyTorch: DDP, FSDP, compiled, scripted, lazy, meta, quantised, SyncBN, FrozenBN, subclasses",
        "taken out of the wrapper and folded, or one named error",
        _in(
            "fuse/torch/test_torch_errors",
            "wrapped_module_is_taken_out",
            "module_compiled_in_place",
            "script_module",
            "lazy_module",
            "meta_module",
            "quantised_weight_is_kept_with_the_reason",
            "forward_that_branches_on_its_input",
        )
        + _in(
            "fuse/torch/test_torch_downstream",
            "distributed_data_parallel_is_taken_out",
            "fully_sharded_module_is_refused",
            "quantised_layer_in_front_keeps_the_batchnorm",
        )
        + _in("fuse/torch/test_torch_layers", "sync_batchnorm_and_a_plain_subclass")
        + _in(
            "fuse/torch/test_torch_capture",
            "frozen_batchnorm_of_torchvision",
            "registered_class_is_folded_and_its_activation_stays",
            "wrong_registration_is_found_by_the_proof",
        )
        + _in("fuse/torch/test_torch_traps", "activation_inside_a_batchnorm_stays"),
    ),
    22: Row(
        "disk full, Ctrl-C, SIGTERM, SIGKILL, IN as OUT, OUT a link, a folder or read-only",
        "old or new, never half",
        _in(
            "export/test_atomic_files",
            "existing_file_is_replaced_only_when_asked",
            "file_that_appears_meanwhile_is_kept",
            "symbolic_link_is_followed",
            "a_failing_writer_leaves_the_old_file",
            "impossible_targets",
            "unwritable_folder",
            "full_disk",
            "kill_leaves_old_or_new",
        )
        + _in("export/test_engine_kills", "fifty_kills", "a_full_disk_leaves_nothing")
        + _in("export/test_engine_kills", "sigterm_in_a_build_leaves_nothing")
        + _in("cli/test_other_commands", "interrupt_leaves_nothing")
        + _in("cli/test_export_command", "ctrl_c_in_a_build_leaves_nothing")
        + _in("cli/test_external_data", "over_itself", "nothing_is_left_when_it_fails")
        + _in("faults/test_all_commands", "a_full_disk_leaves_the_old_file"),
    ),
    23: Row(
        "a model and its data file half written",
        "data first, under the hash of its content",
        _in("export/test_onnx_on_disk", "killed_while_writing_a_pair")
        + _in("cli/test_external_data", "killed_at_any_time", "external_in_external_out")
        + _in("export/test_onnx_streaming", "a_failing_block_leaves_nothing", "over_itself"),
    ),
    24: Row(
        "timing caches: two processes, stale, of another GPU",
        "locked, merged, one for each GPU, version and driver",
        _in(
            "export/test_engine_caches",
            "eight_processes_lose_nothing",
            "a_killed_writer_leaves_a_whole_cache_and_no_lock",
            "who_waits_too_long_gives_up",
            "a_merge_that_fails_changes_nothing",
            "another_version_gpu_or_driver_is_another_file",
            "timings_that_do_not_fit_are_not_used",
            "a_read_only_cache_is_a_warning",
        ),
    ),
    25: Row(
        "hostile names in HTML, Markdown, CSV, JUnit and on a terminal",
        "shown as text everywhere",
        _in("bench/test_report_page", "html_survives_hostile_names")
        + _in(
            "bench/test_report",
            "markdown_survives_hostile_names",
            "the_terminal_survives_hostile_names",
            "tracking_formats_survive_hostile_names",
            "junit_survives_hostile_names",
            "invisible_characters_are_shown_and_long_text_is_cut",
        )
        + _in(
            "bench/test_compare", "changes_survive_hostile_names", "the_history_page_survives_hostile_names"
        )
        + _in("cli/test_fuse_command", "hostile_names_stay_text")
        + _in("export/test_triton", "hostile_names_stay_names")
        + _in("faults/test_all_commands", "hostile_names_reach_no_terminal"),
    ),
    26: Row(
        "broken environments: torchvision of another torch, no TensorRT, no GPU, core only",
        "lazy imports, and a sentence that says what to install",
        _in("export/test_architecture_names", "broken_torchvision_is_explained", "missing_library")
        + _in(
            "export/test_backends",
            "missing_backends_say_how_to_get_them",
            "broken_installations_are_told_from_missing_ones",
            "auto_without_a_gpu",
        )
        + _in(
            "cli/test_other_commands",
            "doctor_tries_every_part",
            "doctor_fails_without_a_core_part",
            "bench_says_what_is_missing",
        )
        + _in("project/test_distribution", "doctor_in_an_empty_environment")
        + _in("project/test_imports", "nothing_heavy")
        + _in("bench/test_runtimes", "every_gpu_runtime_says_what_it_lacks_and_how_to_get_it")
        + _in("faults/test_all_commands", "without_torch_onnx_models_are_served"),
    ),
    27: Row(
        "comparisons that prove nothing: constant outputs, zeros, dead activations",
        "seeded inputs, outputs that vary, a bound for each channel",
        _in(
            "bench/test_equality",
            "constant_outputs_prove_nothing",
            "outputs_that_ignore_the_input_prove_nothing",
            "one_weak_channel_cannot_hide_behind_strong_ones",
            "nan_on_both_sides_is_inconclusive_on_one_side_different",
            "a_deep_fold_is_equal_in_every_precision_and_one_lost_bias_is_seen",
        )
        + _in("cli/test_fuse_command", "proof_of_nothing_writes_nothing")
        + _in("faults/test_all_commands", "behind_dead_activations_the_fold_is_shown_where_it_happened"),
    ),
    28: Row(
        "results that differ from run to run",
        "the same bytes under any hash seed and number of threads",
        _in("faults/test_determinism", "onnx_files_are_byte_identical", "checkpoints_are_byte_identical")
        + _in("cli/test_fuse_command", "same_bytes_twice")
        + _in("cli/test_load_fused", "the_same_fold_gives_the_same_bytes")
        + _in("export/test_torch_exports", "export_is_reproducible_and_holds_no_paths")
        + _in("fuse/test_local_functions", "the_names_are_the_same_at_every_run")
        + _in("export/test_engine_build", "two_builds_are_byte_identical_and_tf32_is_obeyed")
        + _in("road/test_engine_architectures", "the_same_engine_in_another_process"),
    ),
}
